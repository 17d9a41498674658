"""EPLB: copies of busy experts, packed on devices so that each has about the same load.

Based on EPLB (https://github.com/deepseek-ai/EPLB), the expert-parallel load balancer of DeepSeek-V3
(arXiv 2412.19437). It knows loads alone: neither modalities nor which experts are chosen together.
"""

from __future__ import annotations

import numpy as np

from vtc.errors import InputError
from vtc.experts.statistics import Floats, Numbers


def balanced_packing(weight: Floats, packs: int) -> tuple[Numbers, Numbers]:
    """Pack items into packs of equally many, each by falling weight into the lightest pack that has room.

    Of equals the lowest index comes first; in the authors' code torch's unstable sort decides.

    Parameters
    ----------
    weight : array of shape (L, n)
    packs : int
        Divides n.

    Returns
    -------
    pack, place : arrays of shape (L, n), int64
        Pack of each item, and its place in the pack.
    """
    layers, items = weight.shape
    if items % packs:
        raise InputError(f"{items} experts cannot be shared out to {packs} devices: {packs} does not divide {items}")
    room = items // packs
    pack, place = np.zeros((layers, items), np.int64), np.zeros((layers, items), np.int64)
    if room == 1:
        pack[:] = np.arange(items)
        return pack, place
    for layer, order in enumerate(np.argsort(-weight, axis=1, kind="stable")):
        load, count = np.zeros(packs), np.zeros(packs, np.int64)
        for item in order:
            lightest = int(np.argmin(np.where(count < room, load, np.inf)))
            pack[layer, item], place[layer, item] = lightest, count[lightest]
            load[lightest] += weight[layer, item]
            count[lightest] += 1
    return pack, place


def replicate_experts(weight: Floats, slots: int) -> tuple[Numbers, Numbers, Numbers]:
    """Give each spare slot to the expert whose copies have the largest load.

    Parameters
    ----------
    weight : array of shape (L, E)
    slots : int
        At least E.

    Returns
    -------
    expert : array of shape (L, slots), int64
        Expert of each slot.
    copy : array of shape (L, slots), int64
        Which of its copies a slot has.
    copies : array of shape (L, E), int64
    """
    layers, experts = weight.shape
    if slots < experts:
        raise InputError(f"{slots} slots are too few for {experts} experts")
    expert = np.tile(np.arange(slots), (layers, 1))
    copy, copies = np.zeros((layers, slots), np.int64), np.ones((layers, experts), np.int64)
    every = np.arange(layers)
    for slot in range(experts, slots):
        busiest = np.argmax(weight / copies, axis=1)
        expert[:, slot], copy[:, slot] = busiest, copies[every, busiest]
        copies[every, busiest] += 1
    return expert, copy, copies


def rebalance_experts(
    weight: Floats, slots: int, devices: int, groups: int = 1, nodes: int = 1
) -> tuple[Numbers, Numbers, Numbers]:
    """Copy experts into slots and put the slots on devices.

    Where nodes divide the groups, whole groups of experts go to nodes, experts are copied inside a node and packed on
    its devices. Otherwise groups and nodes are not looked at.

    Parameters
    ----------
    weight : array of shape (L, E)
        Tokens of each expert.
    slots : int
        Of all devices together, P; a multiple of `devices`.
    devices, groups, nodes : int

    Returns
    -------
    expert : array of shape (L, P), int64
        Expert of each slot; slot s is on device s // (P / devices).
    slots : array of shape (L, E, most copies), int64
        Slots of each expert, then -1.
    copies : array of shape (L, E), int64

    Raises
    ------
    InputError
        If the numbers do not divide as they must.
    """
    weight = np.asarray(weight, np.float64)
    if groups % nodes:
        groups = nodes = 1
    layers, experts = weight.shape
    for what, of, number, by in (
        ("groups", "experts", experts, groups),
        ("nodes", "devices", devices, nodes),
        ("devices", "slots", slots, devices),
    ):
        if number % by:
            raise InputError(f"{by} {what} do not divide {number} {of}")
    expert, copy, copies = _hierarchical(weight, slots, devices, groups, nodes)
    where = np.full((layers, experts, int(copies.max())), -1)
    where[np.arange(layers)[:, None], expert, copy] = np.arange(slots)
    return expert, where, copies


def _hierarchical(
    weight: Floats, slots: int, devices: int, groups: int, nodes: int
) -> tuple[Numbers, Numbers, Numbers]:
    layers, experts = weight.shape
    size = experts // groups
    # Groups to nodes: experts in the order of their nodes.
    node, place = balanced_packing(weight.reshape(layers, groups, size).sum(axis=2), nodes)
    first = (node * (groups // nodes) + place) * size
    ordinal = (first[:, :, None] + np.arange(size)).reshape(layers, experts)
    ordered = np.argsort(ordinal, axis=1)
    # Copies inside a node; from here on a row is a node of a layer.
    local = np.take_along_axis(weight, ordered, 1).reshape(layers * nodes, -1)
    chosen, copy, copies = replicate_experts(local, slots // nodes)
    # Slots to the devices of a node.
    load = np.take_along_axis(local / copies, chosen, 1)
    device, place = balanced_packing(load, devices // nodes)
    at = np.argsort(device * (slots // devices) + place, axis=1)
    chosen, copy = np.take_along_axis(chosen, at, 1), np.take_along_axis(copy, at, 1)
    start = np.arange(nodes)[None, :, None] * (experts // nodes)
    numbered = (chosen.reshape(layers, nodes, -1) + start).reshape(layers, slots)
    return (
        np.take_along_axis(ordered, numbered, 1),
        copy.reshape(layers, slots),
        np.take_along_axis(copies.reshape(layers, experts), ordinal, 1),
    )

"""What crosses between devices, counted by replaying recorded routes under a placement.

Three measures are easily taken for each other, and are always given together: the share of tokens that need any expert
elsewhere (what papers on expert placement report), the share of calls that leave, and the devices that a token is sent
to. With k random experts on two devices the first is 1 - 2^(1-k) or more where the second is a half.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtc.errors import InputError
from vtc.experts.placement import ExpertMap
from vtc.experts.statistics import MODALITIES, VISUAL, Floats, Numbers, Routes


@dataclass(frozen=True)
class Traffic:
    """Counts of some tokens, means over layers.

    Attributes
    ----------
    tokens : int
    tokens_with_any_remote_expert : float
        Share of tokens that chose at least one expert that is not at home.
    remote_calls : float
        Share of calls, which are pairs of a token and an expert that it chose, that leave.
    remote_devices_per_token : float
        Devices other than its home that a token is sent to.
    load_max_over_mean : float
        Calls on the busiest device over the mean.
    """

    tokens: int
    tokens_with_any_remote_expert: float
    remote_calls: float
    remote_devices_per_token: float
    load_max_over_mean: float


@dataclass(frozen=True)
class Replay:
    """Traffic of all tokens and of each modality, and what each layer and device does.

    Attributes
    ----------
    all, text, visual : Traffic
    calls : array of shape (L, devices), int64
        Calls that a device answers.
    sent : array of shape (L, devices, devices), int64
        Tokens sent from a home to another device; a token goes once to a device, whatever it calls there.
    experts : array of shape (L, devices), int64
        Slots of a device that got any call.
    at_home : array of shape (L, devices), int64
        Tokens whose home a device is.
    """

    all: Traffic
    text: Traffic
    visual: Traffic
    calls: Numbers
    sent: Numbers
    experts: Numbers
    at_home: Numbers

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        counts = {"calls_of_device": self.calls.tolist(), "tokens_sent": self.sent.tolist()}
        return {"all": asdict(self.all), "text": asdict(self.text), "visual": asdict(self.visual)} | counts


def homes_by_sample(routes: Routes, devices: int) -> Numbers:
    """Home (T,) of each token: prompts are dealt out to devices in turn (data parallel)."""
    _, prompt = np.unique(routes.sample, return_inverse=True)
    return np.asarray(prompt % devices, np.int64)


def homes_by_modality(routes: Routes, devices: int, visual_devices: int | None = None) -> Numbers:
    """Home (T,) of each token: text on the first devices, visual tokens on the last; prompts are dealt out to those.

    Parameters
    ----------
    routes : Routes
    devices : int
        At least 2.
    visual_devices : int, optional
        How many are for visual tokens; half of them, rounded down, where none are given. With 2 devices, one each.
    """
    text_devices, visual_devices = _devices_by_modality(devices, visual_devices)
    _, prompt = np.unique(routes.sample, return_inverse=True)
    visual = text_devices + prompt % visual_devices
    return np.where(routes.modality == VISUAL, visual, prompt % text_devices).astype(np.int64)


def calls_by_home(routes: Routes, homes: Numbers, experts: int, devices: int) -> Floats:
    """Calls (L, E, devices) of each expert by tokens of each home."""
    counts = []
    for chosen in routes.chosen:
        there = chosen[:, 0] >= 0
        pairs = chosen[there] * devices + homes[there, None]
        counts.append(np.bincount(pairs.ravel(), minlength=experts * devices).reshape(experts, devices))
    return np.stack(counts).astype(np.float64)


def expected_calls(chosen: Floats, devices: int, visual_devices: int | None = None) -> Floats:
    """Calls (L, E, devices) by tokens of each home, of sums (L, 2, E), where homes are by modality.

    As :func:`calls_by_home` with :func:`homes_by_modality`, of all tokens and not of recorded routes alone.
    """
    text_devices, visual_devices = _devices_by_modality(devices, visual_devices)
    of_each = np.array([1 / text_devices, 1 / visual_devices])
    by_modality = chosen.transpose(0, 2, 1) * of_each
    return np.repeat(by_modality, [text_devices, visual_devices], axis=2)


def _devices_by_modality(devices: int, visual_devices: int | None) -> tuple[int, int]:
    visual_devices = devices // 2 if visual_devices is None else visual_devices
    if not 0 < visual_devices < devices:
        raise InputError(f"{visual_devices} of {devices} devices for visual tokens leave a modality without one")
    return devices - visual_devices, visual_devices


def slots_of_calls(placement: ExpertMap, layer: int, chosen: Numbers, homes: Numbers) -> Numbers:
    """Slot (T, k) that answers each call (T, k) of a layer.

    A copy at home answers. The other calls of an expert by a home go to its copies in turn, in the order of the
    tokens, beginning with the copy of the home's number, so that each home knows it from its own tokens.
    """
    where = placement.slots_of(layer)
    copies = (where >= 0).sum(axis=1)
    active = chosen.shape[1]
    expert, home = chosen.ravel(), np.repeat(homes, active)
    # Which of the home's calls of this expert it is.
    key = home * placement.experts + expert
    order = np.argsort(key, kind="stable")
    counts = np.bincount(key)
    turn = np.empty(len(key), np.int64)
    turn[order] = np.arange(len(key)) - np.repeat(np.cumsum(counts) - counts, counts)
    slot = where[expert, (home + turn) % copies[expert]]
    at_home = (where >= 0)[expert] & (where[expert] // placement.room == home[:, None])
    local = where[expert, at_home.argmax(axis=1)]
    return np.asarray(np.where(at_home.any(axis=1), local, slot).reshape(-1, active), np.int64)


def replay(routes: Routes, placement: ExpertMap, homes: Numbers) -> Replay:
    """Count what recorded routes send between devices, exactly.

    Parameters
    ----------
    routes : Routes
        Of T tokens in L layers.
    placement : ExpertMap
        Of as many layers.
    homes : array of shape (T,), int64
        Device of each token.
    """
    layers, tokens, active = routes.chosen.shape
    devices = placement.devices
    if placement.layers != layers:
        raise InputError(f"the placement has {placement.layers} layers of experts, the routes {layers}")
    if tokens and homes.max() >= devices:
        raise InputError(f"a token's home is device {homes.max()}, but the placement has {devices}")
    leaves, visits = np.zeros((layers, tokens, active), bool), np.zeros((layers, tokens, devices), bool)
    busy = np.empty((layers, tokens, active), np.int64)
    experts = np.empty((layers, devices), np.int64)
    there = routes.chosen[:, :, 0] >= 0
    for layer, own in enumerate(there):
        slots = slots_of_calls(placement, layer, routes.chosen[layer, own], homes[own])
        busy[layer, own] = slots // placement.room
        leaves[layer, own] = busy[layer, own] != homes[own, None]
        visited = np.zeros((len(slots), devices), bool)
        np.put_along_axis(visited, busy[layer, own], True, axis=1)
        visits[layer, own] = visited
        experts[layer] = np.bincount(np.unique(slots) // placement.room, minlength=devices)
    visits[:, np.arange(tokens), homes] = False

    def of(members: Numbers) -> Traffic:
        if not len(members):
            return Traffic(0, *[float("nan")] * 4)
        own = there[:, members]
        calls = _answered(busy[:, members], own, devices)
        calls = calls[calls.any(axis=1)]
        return Traffic(
            len(members),
            float(np.asarray(leaves[:, members].any(axis=2))[own].mean()),
            float(leaves[:, members][own].mean()),
            float(visits[:, members].sum(axis=2)[own].mean()),
            float((calls.max(axis=1) / calls.mean(axis=1)).mean()),
        )

    text, visual = (of(np.flatnonzero(routes.modality == modality)) for modality in range(len(MODALITIES)))
    home = (homes[:, None] == np.arange(devices)).astype(np.int64)
    sent = np.einsum("th,ltd->lhd", home, visits.astype(np.int64))
    at_home = there.astype(np.int64) @ home
    return Replay(of(np.arange(tokens)), text, visual, _answered(busy, there, devices), sent, experts, at_home)


def _answered(busy: Numbers, there: NDArray[np.bool_], devices: int) -> Numbers:
    """Calls (L, devices) that each device answers, of those (L, T, k) of the tokens that are there (L, T)."""
    return np.stack([np.bincount(busy[layer, there[layer]].ravel(), minlength=devices) for layer in range(len(busy))])

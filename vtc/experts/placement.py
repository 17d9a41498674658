"""Where the experts of a model live: slots of devices, and which expert each slot holds.

Slot s is on device s // (slots / devices), as in SGLang, TensorRT-LLM and vLLM. An expert may have copies in several
slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vtc.errors import InputError
from vtc.experts.eplb import balanced_packing, rebalance_experts
from vtc.experts.specialisation import modality_bins
from vtc.experts.statistics import Floats, Numbers


@dataclass(frozen=True)
class ExpertMap:
    """Experts of L layers in P slots of some devices.

    Attributes
    ----------
    expert_of_slot : array of shape (L, P), int64
    experts : int
        Of a layer, E.
    devices : int
        Divides P.
    method : str
        What made it.
    model : str
        Digest of the checkpoint it is for; empty if it is for none in particular.
    statistics : str
        Digest of the expert use that it was made from, or empty.

    Raises
    ------
    InputError
        If an expert has no slot, a slot no expert, or the devices do not divide the slots.
    """

    expert_of_slot: Numbers
    experts: int
    devices: int
    method: str = ""
    model: str = field(default="", kw_only=True)
    statistics: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        slots = self.expert_of_slot.shape[1]
        if self.devices < 1 or slots % self.devices:
            raise InputError(f"{self.devices} devices do not divide {slots} slots of experts; take a divisor")
        for layer, row in enumerate(self.expert_of_slot):
            if row.min() < 0 or row.max() >= self.experts:
                raise InputError(
                    f"layer {layer}: a slot holds expert {row.max()}; the experts are 0 to {self.experts - 1}"
                )
            missing = np.setdiff1d(np.arange(self.experts), row)
            if len(missing):
                raise InputError(f"layer {layer}: expert {missing[0]} has no slot; every expert needs one")

    @property
    def layers(self) -> int:
        """Layers, L."""
        return int(self.expert_of_slot.shape[0])

    @property
    def slots(self) -> int:
        """Slots of all devices together, P."""
        return int(self.expert_of_slot.shape[1])

    @property
    def room(self) -> int:
        """Slots of one device."""
        return self.slots // self.devices

    @property
    def has_copies(self) -> bool:
        """Whether some expert has more than one slot."""
        return self.slots > self.experts

    def slots_of(self, layer: int) -> Numbers:
        """Slots (E, most copies) of each expert of a layer, ascending, then -1."""
        row = self.expert_of_slot[layer]
        copies = np.bincount(row, minlength=self.experts)
        order = np.argsort(row, kind="stable")
        nth = np.arange(self.slots) - np.repeat(np.cumsum(copies) - copies, copies)
        where = np.full((self.experts, int(copies.max())), -1)
        where[row[order], nth] = order
        return where

    def check_model(self, digest: str, layers: int, experts: int, path: Path) -> None:
        """Make sure that the placement is for a model, of so many layers of experts.

        Raises
        ------
        InputError
            If it is for another one.
        """
        if self.model and self.model != digest:
            raise InputError(
                f"{path}: a placement for model {self.model[:12]}, not {digest[:12]}; make one for this model"
            )
        if (self.layers, self.experts) != (layers, experts):
            raise InputError(
                f"{path}: a placement of {self.layers} layers of {self.experts} experts, but the model has {layers} of "
                f"{experts}; make another"
            )


def place_contiguous(layers: int, experts: int, devices: int) -> ExpertMap:
    """Experts in the order of their numbers, as they are loaded where nobody places them."""
    return ExpertMap(np.tile(np.arange(experts), (layers, 1)), experts, devices, "contiguous")


def place_shuffled(layers: int, experts: int, devices: int, seed: int) -> ExpertMap:
    """Experts in random order."""
    generator = np.random.default_rng(seed)
    order = np.stack([generator.permutation(experts) for _ in range(layers)])
    return ExpertMap(order, experts, devices, f"shuffled, seed {seed}")


def place_on_devices(device: Numbers, devices: int, method: str) -> ExpertMap:
    """Experts where an array (L, E) of devices says, in ascending order on each.

    Raises
    ------
    InputError
        If a device gets more experts than another.
    """
    experts = device.shape[1]
    counts = np.stack([np.bincount(row, minlength=devices) for row in device])
    if experts % devices or (counts != experts // devices).any():
        raise InputError(f"{experts} experts are not shared out evenly to {devices} devices")
    return ExpertMap(np.argsort(device, axis=1, kind="stable"), experts, devices, method)


def place_balanced(load: Floats, devices: int) -> ExpertMap:
    """Loads (L, E) packed evenly, without copies: EPLB's packing alone."""
    return place_on_devices(balanced_packing(load, devices)[0], devices, "balanced")


def place_eplb(load: Floats, devices: int, copies: int = 0) -> ExpertMap:
    """Loads (L, E) packed evenly by EPLB, with some experts in more than one slot.

    Parameters
    ----------
    load : array of shape (L, E)
    devices : int
        Divides E + `copies`.
    copies : int
        Slots beyond one for each expert.
    """
    expert_of_slot, _, _ = rebalance_experts(load, load.shape[1] + copies, devices)
    return ExpertMap(expert_of_slot, load.shape[1], devices, f"eplb, {copies} copies")


def place_by_modality(share: Floats, devices: int) -> ExpertMap:
    """Experts in the order of their visual share (L, E), cut into devices: text on the first, visual on the last.

    Based on SMoES (arXiv 2604.23996). Loads are not looked at.
    """
    return place_on_devices(modality_bins(share, devices), devices, "by modality")

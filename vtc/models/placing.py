"""Which device each part of a model is put on, worked out from sizes before any weight is read."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vtc.errors import InputError
from vtc.facts.placement import Placement
from vtc.free_memory import available_ram
from vtc.gpu_memory import gpu_memory
from vtc.models.checkpoint_files import stored_dtype

if TYPE_CHECKING:
    from vtc.models.base import VLMAdapter

ROOM = 0.85
"""Share of free memory that weights may take; the rest is for what they compute."""
LEAST_ROOM = 2**30
"""Bytes that are left free for that in any case, where there are so many."""


@dataclass(frozen=True)
class Placed:
    """What `from_pretrained` is told.

    Attributes
    ----------
    dtype : torch.dtype
    device_map : mapping of module name to device, or None
        None is the processor's memory.
    folder : TemporaryDirectory or None
        For weights on the disk that are not in the checkpoint's files as the model wants them. It goes with the model.
    """

    dtype: torch.dtype
    device_map: dict[str, Any] | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def words(self) -> str:
        """What is told of layers that are elsewhere than where they run; empty where there are none."""
        places = list((self.device_map or {}).values())
        away = {"on the disk": places.count("disk")}
        if 0 in places:
            away["in the processor's memory"] = places.count("cpu")
        told = " and ".join(f"{count} {where}" for where, count in away.items() if count)
        return f"decoder layers that are fetched each time they run: {told}" if told else ""


def placed(outline: VLMAdapter, placement: Placement) -> Placed:
    """Work out where the parts of a checkpoint go.

    Parameters
    ----------
    outline : VLMAdapter
        Whose model is on the device ``meta``.
    placement : Placement

    Returns
    -------
    Placed

    Raises
    ------
    InputError
        If there is no GPU and one is asked for.
    """
    name = stored_dtype(outline.path) if placement.dtype == "auto" else placement.dtype
    dtype: torch.dtype = getattr(torch, name)
    gpu = gpu_memory()
    if placement.device == "cuda":
        if gpu is None:
            raise InputError(f"--device cuda: {without_gpu()}; give --device cpu")
        return Placed(dtype, {"": 0})
    if placement.device == "cpu":
        return Placed(dtype)
    room: dict[int | str, int] = {"cpu": _room(available_ram())}
    if gpu is not None:
        room = {0: _room(gpu), **room}
    device_map = spread(outline.model, outline.decoder_layers, dtype, room)
    if set(device_map.values()) == {"cpu"}:
        return Placed(dtype)
    return Placed(dtype, device_map, tempfile.TemporaryDirectory(prefix="vtc-offload-"))


def without_gpu() -> str:
    """Say why PyTorch has no GPU."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA; install a build with it (https://pytorch.org)"
    return "PyTorch sees no CUDA GPU; nvidia-smi says whether the driver does"


def spread(
    model: nn.Module, layers: Iterable[nn.Module], dtype: torch.dtype, room: Mapping[int | str, int]
) -> dict[str, Any]:
    """Put decoder layers where there is room, in their order; all else runs, and stays, on the first device.

    Parameters
    ----------
    model : module
    layers : sequence of module
        The model's decoder layers.
    dtype : torch.dtype
    room : mapping of device to bytes
        In order of preference; behind the last is the disk.

    Returns
    -------
    dict of module name to device
        For each decoder layer, and for what lies beside and around them.
    """
    decoder = {id(layer) for layer in layers}
    names = {name for name, module in model.named_modules() if id(module) in decoder}
    above = {""} | {name.rsplit(".", cut)[0] for name in names for cut in range(1, name.count(".") + 1)}
    modules = dict(model.named_modules())
    first, *_ = room
    left = dict(room)
    device_map: dict[str, Any] = {}
    for parent in sorted(above):
        for child, _ in modules[parent].named_children():
            name = f"{parent}.{child}" if parent else child
            if name not in above and name not in names:
                device_map[name] = first
        own = modules[parent].named_parameters(parent, recurse=False)
        device_map |= {name: first for name, _ in own}
    inside = {id(tensor) for name in names for tensor in modules[name].parameters()}
    left[first] -= sum(_bytes(one, dtype) for one in model.parameters() if id(one) not in inside)
    places, at = [*room, "disk"], 0
    for name in sorted(names, key=lambda one: [int(part) if part.isdecimal() else part for part in one.split(".")]):
        size = sum(_bytes(one, dtype) for one in modules[name].parameters())
        while at < len(room) and size > left[places[at]]:
            at += 1  # and not back: what is fetched lies together, at the end
        if at < len(room):
            left[places[at]] -= size
        device_map[name] = places[at]
    return device_map


def offloaded(model: nn.Module) -> bool:
    """Whether parts of a model are fetched when they run."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def check_in_memory(model: nn.Module, deed: str) -> None:
    """Make sure that all weights can be looked at.

    Parameters
    ----------
    model : module
    deed : str
        What is to be done with them, for the message.

    Raises
    ------
    InputError
        If parts of the model are fetched when they run.
    """
    if offloaded(model):
        raise InputError(
            f"{deed} in memory, and there is not memory for all weights at once; give --dtype bfloat16, or a larger "
            "machine"
        )


def _bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * dtype.itemsize


def _room(free: int | None) -> int:
    if free is None:  # the system does not tell; its own limits hold
        return sys.maxsize
    return max(0, min(int(free * ROOM), free - LEAST_ROOM))

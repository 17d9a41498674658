"""Copies of compressed models whose weights have another type, and whose memory can be given back."""

from __future__ import annotations

import copy
import mmap
from collections.abc import Sequence

import torch
from torch import nn

from vtc.compressed.model import CompressedModel

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Types of the bases of :mod:`exporters.precision`."""
OWN_BLOCK_ELEMENTS = 2**16
"""Weights of a copy that are at least so large get memory of their own."""
_BLOCK = "block"
"""Attribute of a weight: the memory that it is in."""


def cast_copy(models: Sequence[CompressedModel], dtype: torch.dtype) -> list[CompressedModel]:
    """Copies with weights of another type. Rotary frequencies stay float32, and norms compute in float32 as they do in
    the model's own code.
    """
    # What stands in for a weight is told to deepcopy, which would copy it in float32 first. All in one go, so that the
    # copies go on sharing weights.
    cast = {id(weight): _narrow(weight, dtype) for weight in _weights(models)}
    return copy.deepcopy(list(models), cast)


def _narrow(weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    """A weight in another type, a large one in memory of its own for :func:`discard`."""
    if weight.numel() < OWN_BLOCK_ELEMENTS or not hasattr(mmap, "MADV_DONTNEED"):
        return nn.Parameter(weight.to(dtype, copy=True), requires_grad=False)
    block = mmap.mmap(-1, dtype.itemsize * weight.numel(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    narrow = nn.Parameter(torch.frombuffer(block, dtype=dtype).view(weight.shape), requires_grad=False)
    narrow.data.copy_(weight)
    setattr(narrow, _BLOCK, block)
    return narrow


def discard(copies: Sequence[CompressedModel]) -> None:
    """Give back the memory of copies that are not used any more, whose weights become zero.

    Letting go of them does not do: torch and onnxscript go on referring to much of what they exported.
    """
    for weight in _weights(copies):
        if hasattr(weight, _BLOCK):
            getattr(weight, _BLOCK).madvise(mmap.MADV_DONTNEED)


def cast_weights(models: Sequence[CompressedModel], dtype: torch.dtype) -> None:
    """Give models' weights another type, and memory that goes with them."""
    for weight in _weights(models):
        weight.data = weight.data.to(dtype, copy=hasattr(weight, _BLOCK))
        vars(weight).pop(_BLOCK, None)


def _weights(models: Sequence[CompressedModel]) -> list[nn.Parameter]:
    """All weights of models, each once."""
    parts = [part for model in models for part in (model.adapter.model, model)]
    return list(dict.fromkeys(weight for part in parts for weight in part.parameters()))

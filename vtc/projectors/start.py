"""What training begins with: where the shapes allow, the model's own projector.

Pooling before it is the model as it is, seen at a lower resolution, which is a far better start than a random one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def begin_as(layers: nn.Module, own: nn.Module) -> bool:
    """Copy the linear layers of a model's projector, if they are as many and of the same sizes; whether they are."""
    pairs = _pairs(layers, own)
    if not pairs or any(mine.weight.shape != theirs.weight.shape for mine, theirs in pairs):
        return False
    for mine, theirs in pairs:
        _copy(mine, theirs, theirs.weight)
    return True


@torch.no_grad()
def begin_as_means(layers: nn.Module, own: nn.Module, patches: int) -> bool:
    """As `begin_as`, for a first layer that takes so many patches end to end: it takes their mean."""
    pairs = _pairs(layers, own)
    wanted = [theirs.weight / patches if number == 0 else theirs.weight for number, (_, theirs) in enumerate(pairs)]
    wanted[:1] = [weight.repeat(1, patches) for weight in wanted[:1]]
    if not pairs or any(mine.weight.shape != weight.shape for (mine, _), weight in zip(pairs, wanted, strict=True)):
        return False
    for (mine, theirs), weight in zip(pairs, wanted, strict=True):
        _copy(mine, theirs, weight)
    return True


def _pairs(layers: nn.Module, own: nn.Module) -> list[tuple[nn.Linear, nn.Linear]]:
    """Linear layers of both, in order; none where they are not as many, or the model's numbers are not there."""
    mine, theirs = ([m for m in one.modules() if isinstance(m, nn.Linear)] for one in (layers, own))
    there = not any(linear.weight.is_meta for linear in theirs)
    return list(zip(mine, theirs, strict=True)) if there and len(mine) == len(theirs) else []


def _copy(mine: nn.Linear, theirs: nn.Linear, weight: Tensor) -> None:
    mine.weight.copy_(weight)
    bias: Tensor | None = theirs.bias  # PyTorch says that it is always there
    mine.bias.copy_(torch.zeros_like(mine.bias) if bias is None else bias)

"""Scales of blocks: inputs of a weight that share one are stored as whole multiples of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BLOCKS = (128, 64, 32, 16)
"""Inputs that share a scale: the first that divides their number. GPUs have kernels for 128."""
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Shares of a block's largest weight that may become the largest number; the one with the least squared error does."""
WHOLE = (1.0,)
"""Of weights that become the nearest numbers: their least error is not the model's (docs/precision.md)."""


class Grid(NamedTuple):
    """What weights are rounded to.

    Attributes
    ----------
    block : int
        Inputs that share a scale; divides their number.
    largest : float
        Of the numbers.
    least : float
        Least magnitude of a scale.
    dtype : torch.dtype
        Of scales.
    either_sign : bool
        Whether scales may be below zero. Numbers then reach to ``-largest - 1``, which two's complement has too: the
        scale takes the sign that puts the block's largest weight there.
    clips : tuple of float
        Shares of a block's largest weight to try.
    """

    block: int
    largest: float
    least: float
    dtype: torch.dtype
    either_sign: bool = False
    clips: tuple[float, ...] = CLIPS

    @property
    def lowest(self) -> float:
        """Of the numbers."""
        return -self.largest - self.either_sign


def block_of(inputs: int, most: int) -> int:
    """The largest of :data:`BLOCKS` up to `most` that divides a number of inputs; 0 where none does."""
    return next((size for size in BLOCKS if size <= most and inputs % size == 0), 0)


def block_scales(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Tensor:
    """Scales (outputs, inputs / block), float32, with the least squared error.

    Parameters
    ----------
    weight : Tensor of shape (outputs, inputs), float32
    grid : Grid
    importance : Tensor of shape (inputs,) or None
        What the squared error of each input counts.
    """
    blocks = weight.view(len(weight), -1, grid.block)
    shares = None if importance is None else importance.view(1, -1, grid.block)
    top = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))[..., 0]
    ends = [clip / grid.largest for clip in grid.clips]
    sign = torch.ones_like(top)
    if grid.either_sign:
        # Above the lowest number's own, so that the largest weight of the other sign is not clipped either.
        ends = [1 / grid.largest, *(clip / -grid.lowest for clip in grid.clips)]
        sign = torch.where(top > 0, -sign, sign)
    best = torch.full_like(top, math.inf)
    chosen = best.clone()
    for end in ends:
        scales = (top.abs() * end).clamp(min=grid.least).mul(sign).to(grid.dtype).float()
        wide = scales[..., None]
        numbers = (blocks / wide).round_().clamp_(grid.lowest, grid.largest)
        errors = (numbers * wide - blocks).square_()
        error = (errors if shares is None else errors * shares).sum(dim=-1)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scales, chosen)
    return chosen

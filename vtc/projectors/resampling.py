"""Resampling of a grid of tokens as constant matrices, one for rows and one for columns.

All are (out, in). A graph has two matrix products of them and no operator that resizes or pools.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.facts.layout import Grid

SHARPNESS = -0.75
"""A of the cubic convolution, as PyTorch takes it."""


def averages(size: int, target: int) -> Tensor:
    """Means of `target` ranges of `size` places, from floor(i * size / target) to ceil((i + 1) * size / target).

    Ranges overlap where `target` does not divide `size`. This is PyTorch's adaptive average pooling.
    """
    part, place = torch.arange(target)[:, None], torch.arange(size)
    inside = (place >= part * size // target) & (place < -(-(part + 1) * size // target))
    return inside.double() / inside.sum(dim=1, keepdim=True)


def bilinear(size: int, target: int, *, corners: bool = False) -> Tensor:
    """Linear interpolation without smoothing; with `corners` the first and the last places stay where they are."""
    place = torch.arange(target, dtype=torch.float64)
    if corners:
        source = place * ((size - 1) / (target - 1)) if target > 1 else torch.zeros_like(place)
    else:
        source = ((place + 0.5) * size / target - 0.5).clamp(0, size - 1)
    return (1 - (source[:, None] - torch.arange(size, dtype=torch.float64)).abs()).clamp(min=0)


def bicubic(size: int, target: int) -> Tensor:
    """Cubic convolution between the centres of cells, without smoothing; places beyond the ends are the ends."""
    source = (torch.arange(target, dtype=torch.float64) + 0.5) * size / target - 0.5
    first = source.floor()
    matrix = torch.zeros(target, size, dtype=torch.float64)
    for offset in range(-1, 3):
        tap = (first + offset).clamp(0, size - 1).long()
        weight = _cubic((source - (first + offset)).abs())
        matrix.scatter_add_(1, tap[:, None], weight[:, None])
    return matrix


def _cubic(distance: Tensor) -> Tensor:
    a = SHARPNESS
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


def resample(tokens: Tensor, grid: Grid, rows: Tensor, columns: Tensor) -> Tensor:
    """Tokens (B, h * w, C) of those (B, H * W, C) of a grid, by matrices (h, H) and (w, W)."""
    batch, _, width = tokens.shape
    by_row = torch.matmul(rows.to(tokens), tokens.reshape(batch, grid[0], grid[1] * width))
    by_column = torch.matmul(columns.to(tokens), by_row.reshape(batch * len(rows), grid[1], width))
    return by_column.reshape(batch, len(rows) * len(columns), width)


def windows(tokens: Tensor, grid: Grid, side: int) -> Tensor:
    """Tokens (B, H * W, C) in squares, (B, H / side * W / side, side * side, C); squares and places row by row."""
    batch, _, width = tokens.shape
    rows, columns = grid[0] // side, grid[1] // side
    squares = tokens.reshape(batch, rows, side, columns, side, width).transpose(2, 3)
    return squares.reshape(batch, rows * columns, side * side, width)

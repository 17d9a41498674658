"""Resampling of a grid of tokens as constant matrices, one for rows and one for columns.

All are (out, in). A graph has two matrix products of them and no operator that resizes or pools.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.facts.layout import Grid

SHARPNESS = -0.75
"""A of the cubic convolution, as PyTorch takes it."""


def overlaps(size: int, target: int) -> Tensor:
    """Whether one of `target` equal parts of a line has a share of one of its `size` places, bool."""
    part, place = torch.arange(target)[:, None], torch.arange(size)
    return (place >= part * size // target) & (place < -(-(part + 1) * size // target))


def averages(size: int, target: int) -> Tensor:
    """Means of the places that `target` equal parts overlap: PyTorch's adaptive average pooling."""
    inside = overlaps(size, target)
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


class Resampling(nn.Module):
    """A grid of tokens resampled by two constant matrices, which no state holds.

    Parameters
    ----------
    rows, columns : Tensors of shape (h, H) and (w, W)
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows.float(), persistent=False)
        self.register_buffer("columns", columns.float(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, h * w, C) of those (B, H * W, C) of the grid."""
        batch, _, width = tokens.shape
        (height_out, height_in), (width_out, width_in) = self.rows.shape, self.columns.shape
        rows, columns = self.rows.to(tokens), self.columns.to(tokens)
        by_row = torch.matmul(rows, tokens.reshape(batch, height_in, width_in * width))
        by_column = torch.matmul(columns, by_row.reshape(batch * height_out, width_in, width))
        return by_column.reshape(batch, height_out * width_out, width)


def pooling(grid: Grid, keep_grid: Grid) -> Resampling:
    """Adaptive average pooling of a grid to a smaller one."""
    return Resampling(averages(grid[0], keep_grid[0]), averages(grid[1], keep_grid[1]))


def windows(tokens: Tensor, grid: Grid, side: int) -> Tensor:
    """Tokens (B, H * W, C) in squares, (B, H / side * W / side, side * side, C); squares and places row by row."""
    batch, _, width = tokens.shape
    rows, columns = grid[0] // side, grid[1] // side
    squares = tokens.reshape(batch, rows, side, columns, side, width).transpose(2, 3)
    return squares.reshape(batch, rows * columns, side * side, width)

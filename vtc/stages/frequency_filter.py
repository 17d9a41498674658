"""Frequency filter: keep the low spatial frequencies of the token grid (Fourier-VLM, arXiv 2508.06038).

The grid of visual tokens goes through a two-dimensional DCT-II, the lowest h x w frequencies are kept, and an inverse
DCT of that size gives h * w tokens. All of it is linear, so it is two constant matrix products, one for each axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.recipe.stages import FrequencyFilterEntry
from vtc.resampling import Resampling, overlaps
from vtc.stages.base import BuildContext, TokenStage
from vtc.visual_tokens import VisualTokens, in_grids


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II of length `size` as a matrix, float64: row k is frequency k."""
    place = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi * (place + 0.5) * place[:, None] / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def low_pass_matrix(size: int, keep: int) -> Tensor:
    """DCT of length `size`, cut to its `keep` lowest frequencies, and back by a DCT of length `keep`: (keep, size)."""
    return dct_matrix(keep).T @ dct_matrix(size)[:keep]


class FrequencyFilter(TokenStage):
    """Low-pass filter over a token grid.

    Parameters
    ----------
    grids, keep_grids : sequences of (int, int)
        Rows and columns going in and coming out; tokens of several grids stand one after the other.
    preserve_mean : bool
        Scale by sqrt(out / in) so that the mean token is unchanged. The authors fine-tune their models and leave it
        out, which multiplies the mean by sqrt(in / out); an untrained model needs it.
    """

    def __init__(self, grids: Sequence[Grid], keep_grids: Sequence[Grid], *, preserve_mean: bool = True) -> None:
        super().__init__()
        self.keep_grids = tuple(keep_grids)
        self.ends = list(accumulate((prod(grid) for grid in grids), initial=0))
        self.parts = nn.ModuleList(
            GridFilter(grid, keep_grid, preserve_mean=preserve_mean)
            for grid, keep_grid in zip(grids, keep_grids, strict=True)
        )

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Replace the tokens of the whole grids by those of the smaller ones."""
        deepstack = None if tokens.deepstack is None else self.filtered(tokens.deepstack)
        filtered = in_grids(self.filtered(tokens.features), self.keep_grids)
        padding = None if tokens.padding is None else self.padding(tokens.padding)
        return replace(filtered, text=tokens.text, deepstack=deepstack, padding=padding)

    def filtered(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, D) of the smaller grids, of those (B, N, D) of the whole ones."""
        ranges = zip(self.parts, pairwise(self.ends), strict=True)
        return torch.cat([part(tokens[:, first:last]) for part, (first, last) in ranges], dim=1)

    def padding(self, padding: Tensor) -> Tensor:
        """Which tokens (B, n) of the smaller grids stand where the whole ones have nothing but padding (B, N)."""
        ranges = zip(self.parts, pairwise(self.ends), strict=True)
        parts = [cast(GridFilter, part).padding(padding[:, first:last]) for part, (first, last) in ranges]
        return torch.cat(parts, dim=1)


def build(entry: FrequencyFilterEntry, context: BuildContext) -> FrequencyFilter:
    """Make the filter from the grids that come to it to those of the plan."""
    step = context.step
    return FrequencyFilter(step.grids_in, step.grids_out, preserve_mean=entry.preserve_mean)


class GridFilter(Resampling):
    """The filter of one grid; parameters as those of :class:`FrequencyFilter`."""

    def __init__(self, grid: Grid, keep_grid: Grid, *, preserve_mean: bool) -> None:
        gain = math.sqrt(prod(keep_grid) / prod(grid)) if preserve_mean else 1.0
        super().__init__(low_pass_matrix(grid[0], keep_grid[0]) * gain, low_pass_matrix(grid[1], keep_grid[1]))
        self.grid = grid
        self.keep_grid = keep_grid

    def padding(self, padding: Tensor) -> Tensor:
        """Which tokens (B, h * w) stand for a part of the whole grid that is all padding (B, H * W)."""
        real = (~padding).float().reshape(-1, 1, *self.grid)
        rows, columns = (overlaps(*sizes).to(real) for sizes in zip(self.grid, self.keep_grid, strict=True))
        in_rows = (real * rows.unsqueeze(-1)).amax(dim=2)  # (B, h, W)
        return (in_rows.unsqueeze(2) * columns).amax(dim=3).flatten(1) == 0


def retained_energy(tokens: Tensor, grid: tuple[int, int], keep_grid: tuple[int, int]) -> float:
    """Share of the tokens' DCT energy that a filter to `keep_grid` keeps; tokens (B, H * W, D)."""
    batch, _, width = tokens.shape
    spectrum = torch.einsum(
        "uh,vw,bhwd->buvd", dct_matrix(grid[0]), dct_matrix(grid[1]), tokens.double().reshape(batch, *grid, width)
    )
    energy = spectrum.square().sum(dim=(0, 3))
    return float(energy[: keep_grid[0], : keep_grid[1]].sum() / energy.sum())

"""Average pooling of the grid to exactly `keep` cells, the plainest way to fewer tokens.

Rows are pooled into r bands, r next to sqrt(keep * H / W), and each band into floor or ceil of keep / r cells. Bands
and cells reach from floor(i * size / parts) to ceil((i + 1) * size / parts), as in adaptive average pooling, which this
is when r divides the budget. Several grids share the budget in proportion to their tokens. Padding is left out of
means; a cell that is nothing else stays, since cells are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from math import prod

import numpy as np
import torch
from torch import Tensor

from vtc.facts.layout import shared_out
from vtc.recipe.selectors.pooling import PoolingEntry
from vtc.selectors.base import Merger
from vtc.visual_tokens import VisualTokens


class Pooling(Merger[PoolingEntry]):
    """Means of cells, each standing at its central patch; tokens without a grid are pooled along their list."""

    def merge(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor]:
        device = tokens.features.device
        places: list[int] = []
        pooled: list[Tensor] = []
        for first, last, centres, weights in _shares(tokens, keep):
            places += [first + centre for centre in centres]
            own, mean = tokens.features[:, first:last].float(), torch.tensor(weights, device=device)
            if tokens.padding is not None:
                mean = without(mean, tokens.padding[:, first:last])
            pooled.append(torch.matmul(mean, own))
        means = torch.cat(pooled, dim=1).to(tokens.features.dtype)
        return torch.tensor(places, device=device).expand(means.shape[0], keep), means

    def prune(self, tokens: VisualTokens, keep: int) -> VisualTokens:
        """The cells, of which those are padding that are made of nothing else."""
        pooled = super().prune(tokens, keep)
        if tokens.padding is None:
            return pooled
        real = (~tokens.padding).float().unsqueeze(1)
        parts = [
            (torch.tensor(weights, device=real.device) * real[..., first:last]).amax(dim=-1) == 0
            for first, last, _, weights in _shares(tokens, keep)
        ]
        return replace(pooled, padding=torch.cat(parts, dim=1))


def _shares(tokens: VisualTokens, keep: int) -> Iterator[tuple[int, int, list[int], np.ndarray]]:
    """Of each grid with a share in the budget: where its tokens begin and end, and its `cells`."""
    grids = tokens.grids_or_row
    sizes = [prod(grid) for grid in grids]
    starts = accumulate(sizes, initial=0)
    for first, grid, share in zip(starts, grids, shared_out(keep, sizes), strict=False):
        if share:
            yield first, first + prod(grid), *cells(grid, share)


def cells(grid: tuple[int, int], keep: int) -> tuple[list[int], np.ndarray]:
    """Central patches of the `keep` cells of a grid (H, W), and the weights of each cell's mean, (keep, H * W)."""
    height, width = grid
    rows = min(max(round(math.sqrt(keep * height / width)), math.ceil(keep / width), 1), height, keep)
    weights = np.zeros((keep, height, width), dtype=np.float32)
    centres = []
    for band, (top, bottom) in enumerate(_parts(height, rows)):
        first, last = band * keep // rows, (band + 1) * keep // rows
        for cell, (left, right) in enumerate(_parts(width, last - first), first):
            weights[cell, top:bottom, left:right] = 1 / ((bottom - top) * (right - left))
            centres.append((top + bottom - 1) // 2 * width + (left + right - 1) // 2)
    return centres, weights.reshape(keep, -1)


def without(weights: Tensor, padding: Tensor) -> Tensor:
    """Weights (keep, n) of means without padding (B, n), but for cells that are all padding: (B, keep, n)."""
    rest = weights * (~padding).float().unsqueeze(1)
    total = rest.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, rest / total.clamp(min=1e-9), weights)


def _parts(size: int, parts: int) -> list[tuple[int, int]]:
    """Where `parts` parts of `size` begin and end; neighbours may share a place."""
    return [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]

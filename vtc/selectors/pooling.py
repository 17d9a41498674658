"""Average pooling of the grid to exactly `keep` cells, the plainest way to fewer tokens.

Rows are pooled into r bands, r next to sqrt(keep * H / W), and each band into floor or ceil of keep / r cells. Bands
and cells reach from floor(i * size / parts) to ceil((i + 1) * size / parts), as in adaptive average pooling, which this
is when r divides the budget. Several grids share the budget in proportion to their tokens.
"""

from __future__ import annotations

import math
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
        grids = tokens.grids_or_row
        sizes = [prod(grid) for grid in grids]
        starts = list(accumulate(sizes, initial=0))[:-1]
        places: list[int] = []
        pooled: list[Tensor] = []
        for first, grid, share in zip(starts, grids, shared_out(keep, sizes), strict=True):
            if share:
                centres, weights = cells(grid, share)
                places += [first + centre for centre in centres]
                own = tokens.features[:, first : first + prod(grid)].float()
                pooled.append(torch.matmul(torch.tensor(weights, device=device), own))
        means = torch.cat(pooled, dim=1).to(tokens.features.dtype)
        return torch.tensor(places, device=device).expand(means.shape[0], keep), means


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


def _parts(size: int, parts: int) -> list[tuple[int, int]]:
    """Where `parts` parts of `size` begin and end; neighbours may share a place."""
    return [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]

"""Pooling: adaptive average pooling where the budget is a grid, and cells that cover all where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vtc.recipe.selectors.pooling import PoolingEntry
from vtc.selectors.pooling import Pooling, cells
from vtc.visual_tokens import VisualTokens, in_grids


@pytest.mark.parametrize(
    ("grid", "pooled"),
    [((24, 24), (8, 8)), ((24, 24), (7, 7)), ((6, 12), (3, 6)), ((3, 7), (3, 7)), ((24, 24), (1, 1))],
)
def test_equals_adaptive_average_pooling(grid: tuple[int, int], pooled: tuple[int, int]) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, grid[0] * grid[1], 4)
    _, merged = Pooling(PoolingEntry()).merge(in_grids(features, (grid,)), pooled[0] * pooled[1])
    image = features.transpose(1, 2).reshape(2, 4, *grid)
    expected = torch.nn.functional.adaptive_avg_pool2d(image, pooled).flatten(2).transpose(1, 2)
    torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize("grid", [(24, 24), (3, 7), (7, 3), (1, 5), (5, 1)])
def test_cells_cover_the_grid_at_any_budget(grid: tuple[int, int]) -> None:
    for keep in range(1, grid[0] * grid[1] + 1):
        centres, weights = cells(grid, keep)
        assert len(centres) == keep
        assert (np.diff(centres) > 0).all()
        assert centres[0] >= 0
        assert centres[-1] < grid[0] * grid[1]
        assert (weights.sum(axis=0) > 0).all()
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
        assert (weights[np.arange(keep), centres] > 0).all()


def test_without_a_grid_pools_along_the_list() -> None:
    features = torch.arange(6.0).reshape(1, 6, 1)
    indices, merged = Pooling(PoolingEntry()).merge(VisualTokens(features, torch.arange(6)[None], ()), 3)
    assert indices.tolist() == [[0, 2, 4]]
    assert merged.flatten().tolist() == [0.5, 2.5, 4.5]

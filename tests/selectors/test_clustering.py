"""Clustering: the rule written out, and clusters that are found."""

from __future__ import annotations

import math

import pytest
import torch

from vtc.recipe.selectors.clustering import ClusteringEntry
from vtc.selectors.clustering import Clustering
from vtc.visual_tokens import in_grids


@pytest.mark.parametrize("keep", [1, 5, 12])
def test_equals_the_rule_written_out(keep: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(20, 6)
    distance = torch.cdist(features, features) / math.sqrt(6)
    density = [math.exp(-float(row.sort().values[:5].square().mean())) for row in distance]
    delta = []
    for i in range(20):
        denser = [float(distance[i, j]) for j in range(20) if density[j] > density[i]]
        delta.append(min(denser, default=float(distance.max())))
    centres = sorted(sorted(range(20), key=lambda i: -density[i] * delta[i])[:keep])
    cluster = distance[:, centres].argmin(dim=1)
    expected = torch.stack([features[cluster == number].mean(dim=0) for number in range(keep)])
    indices, merged = Clustering(ClusteringEntry()).merge(in_grids(features[None], ((4, 5),)), keep)
    assert indices[0].tolist() == centres
    torch.testing.assert_close(merged[0], expected)


def test_finds_clusters_far_from_each_other_at_any_scale() -> None:
    torch.manual_seed(0)
    spots = 1000 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    features = spots.repeat_interleave(12, dim=0) + torch.randn(36, 2)
    indices, _ = Clustering(ClusteringEntry()).merge(in_grids(features[None], ((6, 6),)), 3)
    assert indices.shape == (1, 3)
    assert [place // 12 for place in indices[0].tolist()] == [0, 1, 2]


def test_equal_tokens_are_clusters_of_their_own_where_they_are_centres() -> None:
    indices, merged = Clustering(ClusteringEntry()).merge(in_grids(torch.ones(1, 9, 4), ((3, 3),)), 4)
    assert indices.tolist() == [[0, 1, 2, 3]]
    assert torch.equal(merged, torch.ones(1, 4, 4))

"""Clusters of experts as HC-SMoE's code finds them, and their merged weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vtc.errors import InputError
from vtc.experts.merging import Linkage, cluster_experts, cluster_shares
from vtc.experts.statistics import Numbers

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "hcsmoe.npz")
FEATURES = GOLDEN["X"].astype(np.float64)


def first_seen(labels: Numbers) -> list[int]:
    names = dict.fromkeys(labels.tolist())
    return [list(names).index(label) for label in labels.tolist()]


@pytest.mark.parametrize("method", ["average", "single"])
@pytest.mark.parametrize("clusters", [3, 4, 6, 8])
def test_partitions_of_the_authors(method: Linkage, clusters: int) -> None:
    expected = first_seen(GOLDEN[f"{method}_n{clusters}_0"])
    assert cluster_experts(FEATURES, clusters, method).tolist() == expected


def test_complete_linkage_joins_the_nearest() -> None:
    """The authors' code joins the farthest: its three clusters are one of ten experts and two of one."""
    line = np.array([[0.0], [1], [10], [11], [30]])
    assert cluster_experts(line, 3, "complete").tolist() == [0, 0, 1, 1, 2]
    assert np.bincount(GOLDEN["complete_n3_0"]).max() == 10
    assert np.bincount(cluster_experts(FEATURES, 3, "complete")).max() < 10


def test_as_many_clusters_as_experts_change_nothing() -> None:
    assert cluster_experts(np.zeros((4, 2)), 4).tolist() == [0, 1, 2, 3]
    assert cluster_experts(np.zeros((4, 2)), 2).max() == 1
    with pytest.raises(InputError, match="12 experts cannot be merged into 13"):
        cluster_experts(FEATURES, 13)


def test_weights_are_merged_by_frequency() -> None:
    weights = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    shares = cluster_shares(np.array([0, 1, 0, 1]), np.array([3.0, 0, 1, 0])).astype(np.float32)
    merged = np.einsum("ce,eij->cij", shares, weights)
    np.testing.assert_allclose(merged[0], (3 * weights[0] + weights[2]) / 4)
    np.testing.assert_allclose(merged[1], (weights[1] + weights[3]) / 2)
    assert merged.dtype == np.float32

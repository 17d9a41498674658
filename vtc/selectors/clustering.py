"""Clustering: one token for each cluster of similar ones (DPC-KNN, Du et al. 2016).

Used on visual tokens by TCFormer (arXiv 2204.08680) and Chat-UniVi (arXiv 2311.08046). The mean of a cluster stands at
its centre; :mod:`vtc.selectors.density_peaks` says which clusters there are.
"""

from __future__ import annotations

from torch import Tensor

from vtc.recipe.selectors.clustering import ClusteringEntry
from vtc.selectors.base import Merger, ascending_with
from vtc.selectors.density_peaks import cluster
from vtc.visual_tokens import VisualTokens


class Clustering(Merger[ClusteringEntry]):
    """Density peaks of the features."""

    def merge(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor]:
        neighbours = min(self.entry.neighbours, tokens.features.shape[1])
        return ascending_with(*cluster(tokens.features, keep, neighbours, padding=tokens.padding))

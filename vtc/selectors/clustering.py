"""Clustering: one token for each cluster of similar ones (DPC-KNN, Du et al. 2016).

Used on visual tokens by TCFormer (arXiv 2204.08680) and Chat-UniVi (arXiv 2311.08046). The mean of a cluster stands at
its centre; :mod:`vtc.selectors.density_peaks` says which clusters there are.
"""

from __future__ import annotations

from torch import Tensor

from vtc.selectors.base import Merger, ascending_with
from vtc.selectors.density_peaks import cluster
from vtc.visual_tokens import VisualTokens


class Clustering(Merger):
    """Density peaks of the features.

    Parameters
    ----------
    neighbours : int
        How many nearest tokens a density is made of, the token itself among them.
    """

    def __init__(self, neighbours: int = 5) -> None:
        super().__init__()
        self.neighbours = neighbours

    def merge(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor]:
        return ascending_with(*cluster(tokens.features, keep, min(self.neighbours, tokens.features.shape[1])))

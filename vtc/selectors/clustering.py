"""Clustering by density peaks: one token for each cluster of similar ones (DPC-KNN, Du et al. 2016).

Used on visual tokens by TCFormer (arXiv 2204.08680) and Chat-UniVi (arXiv 2311.08046). With d = Euclidean distance /
sqrt(D), a token's density is exp(-mean d^2 to its k nearest others), its delta the distance to the nearest denser token
(the largest distance of all, for the densest). The `keep` tokens of highest density * delta are centres, every other
token joins the nearest centre, and the mean of a cluster stands at its centre. Products are compared as logarithms,
where densities of wide features do not vanish.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.selectors.base import Merger, ascending, best, top_k
from vtc.visual_tokens import VisualTokens, gather_tokens


class Clustering(Merger):
    """Density peaks of the features; of equal densities the lower index is the denser.

    Parameters
    ----------
    neighbours : int
        k, how many nearest tokens a density is made of.
    """

    def __init__(self, neighbours: int = 5) -> None:
        super().__init__()
        self.neighbours = neighbours

    def merge(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor]:
        features = tokens.features.float()
        distance = distances(features)
        centres = ascending(top_k(self.score(distance), keep))
        places = torch.arange(features.shape[1], device=features.device)
        is_centre = places == centres.unsqueeze(-1)
        nearness = -torch.where(is_centre, -1.0, gather_tokens(distance, centres)).transpose(1, 2)
        joins = (best(nearness) == places[:keep]).float().transpose(1, 2)
        means = torch.matmul(joins, features) / joins.sum(dim=-1, keepdim=True)
        return centres, means.to(tokens.features.dtype)

    def score(self, distance: Tensor) -> Tensor:
        """Logarithm of density * delta, (B, N), of distances (B, N, N)."""
        count = distance.shape[1]
        neighbours = max(1, min(self.neighbours, count - 1))
        nearest = -torch.topk(-distance, min(neighbours + 1, count), dim=-1).values
        density = -nearest.square().sum(dim=-1) / neighbours
        mine, other = density.unsqueeze(2), density.unsqueeze(1)
        places = torch.arange(count, device=distance.device)
        denser = (other > mine) | ((other == mine) & (places < places.unsqueeze(-1)))
        delta = torch.where(denser, distance, distance.amax(dim=(1, 2), keepdim=True)).amin(dim=-1)
        return density + delta.clamp(min=1e-20).log()


def distances(features: Tensor) -> Tensor:
    """Distances / sqrt(D) of all tokens (B, N, D) to each other, (B, N, N); 0 of each to itself."""
    # From the first token on, so that what all have in common costs no precision.
    features = features - features[:, :1]
    squares = features.square().sum(dim=-1)
    products = torch.matmul(features, features.transpose(1, 2))
    squared = (squares.unsqueeze(1) + squares.unsqueeze(2) - 2 * products).clamp(min=0) / features.shape[-1]
    places = torch.arange(features.shape[1], device=features.device)
    return torch.where(places == places.unsqueeze(-1), 0.0, squared.sqrt())

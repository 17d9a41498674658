"""Clusters around density peaks: DPC-KNN (Du et al. 2016).

A token's density is exp(-mean of its squared distances to the k tokens nearest to it, itself among them), distances
divided by sqrt(E). Centres are the tokens of the highest product of density and distance to the nearest denser one (the
largest distance of all, for the densest); all others join the centre nearest to them. Densities are compared as
logarithms, since at the distances of a real model's states they would all be 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.selectors.base import best, padding_last, top_k
from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import gather_tokens


def cluster(
    states: Tensor, count: int, neighbours: int, noise: Tensor | None = None, padding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cluster tokens.

    Parameters
    ----------
    states : Tensor of shape (I, n, E)
    count : int
        Clusters, in 1..n.
    neighbours : int
        In 1..n.
    noise : Tensor of shape (I, n) or None
        Added to the densities. Without it, the lower index is the denser of equals.
    padding : Tensor of shape (I, n), bool, or None
        Tokens that are centres after all others, and members of no other's cluster.

    Returns
    -------
    centres : Tensor of shape (I, count), int64
        Highest product first.
    merged : Tensor of shape (I, count, E)
        Mean of each cluster, in the type of `states`.
    """
    values = states.float()
    total = values.shape[1]
    places = torch.arange(total, device=values.device)
    squared = squared_distances(values) / values.shape[2]
    log_density = torch.topk(squared, neighbours, dim=-1, largest=False).values.mean(dim=-1).neg()
    if noise is not None:
        log_density = torch.log(torch.exp(log_density) + noise)
    own, other = log_density.unsqueeze(2), log_density.unsqueeze(1)
    denser = (other > own) | ((other == own) & (places < places.unsqueeze(1)))
    farthest = squared.amax(dim=(1, 2), keepdim=True)
    to_denser = torch.where(denser, squared, farthest).amin(dim=-1)
    # The product's logarithm: half that of the squared distance, which must not be 0.
    centres = top_k(padding_last(0.5 * torch.log(to_denser.clamp(min=1e-30)) + log_density, padding), count)

    to_centres = gather_tokens(squared, centres).transpose(1, 2)
    is_centre = centres.unsqueeze(1) == places.unsqueeze(1)
    # A centre is its own, also where another one is no farther away.
    nearness = torch.where(is_centre, 1.0, -to_centres)
    joins = best(nearness.flatten(0, 1)).reshape(-1, total, 1) == torch.arange(count, device=values.device)
    members = joins.float().transpose(1, 2)
    if padding is not None:
        members = torch.where(padding.unsqueeze(1) & ~is_centre.transpose(1, 2), 0.0, members)
    merged = torch.matmul(members, values) / members.sum(dim=-1, keepdim=True)
    return centres, merged.to(states.dtype)


def squared_distances(values: Tensor) -> Tensor:
    """Squared distances (I, n, n) between vectors (I, n, E), 0 between equal ones and exactly symmetric."""
    # Distances are those of centred vectors, which lose fewer digits in the differences below.
    centred = values - values.mean(dim=1, keepdim=True)
    products = torch.matmul(centred, centred.transpose(1, 2))
    length = centred.square().sum(dim=-1)
    squared = (length.unsqueeze(1) + length.unsqueeze(2)) - (products + products.transpose(1, 2))
    itself = torch.eye(values.shape[1], device=values.device)
    first = first_equal(values)
    return gather_tokens(read_at(squared.clamp(min=0) * (1 - itself), first), first)

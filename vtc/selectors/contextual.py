"""Contextual tokens: what the dominant tokens leave over, merged into a few (VisionZip, arXiv 2412.04467).

Of the R tokens that are left over, in raster order, every max(1, R // C)-th is a target, C in all. Every other one
goes to the target whose metric is most similar to its own (cosine), of equal ones the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.selectors.base import best, kept_mask
from vtc.selectors.similarity import cosines
from vtc.visual_tokens import gather_tokens


def contextual_merge(
    features: Tensor,
    metric: Tensor,
    dominant: Tensor,
    count: int,
    published: bool = False,
    padding: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Merge the tokens that are not dominant into `count` ones.

    Parameters
    ----------
    features : Tensor of shape (B, N, D)
    metric : Tensor of shape (B, N, M)
        What similarity is measured by; keys, as a rule.
    dominant : Tensor of shape (B, d), int64
        Tokens that are kept as they are, unique within each image.
    count : int
        C, in 1..N - d.
    published : bool
        Give a target plus the mean of what went to it, as the authors' code does: about twice the norm that the model
        knows. Otherwise the mean of a target and all that went to it.
    padding : Tensor of shape (B, N), bool, or None
        Tokens that are merged into none, and are targets only where fewer than C others are left.

    Returns
    -------
    target_indices : Tensor of shape (B, C), int64
        Places of the targets among the N tokens, ascending.
    merged : Tensor of shape (B, C, D)
        What they are now, in the type of `features`.
    """
    total = features.shape[1]
    left = total - dominant.shape[1]
    step = max(1, left // count)
    # Dominant tokens are moved after all others, which stay in raster order.
    order = torch.arange(total, device=features.device) + total * kept_mask(dominant, total)
    place = torch.arange(left, device=features.device)
    if padding is None:
        rest = torch.sort(order, dim=-1).indices[:, :left]
        target_indices = rest[:, : step * count : step]
        is_target = (place % step == 0) & (place < step * count)
    else:
        # Padding stands between the tokens that are left and the dominant ones, and the stride ends before it.
        is_dominant = kept_mask(dominant, total)
        order = order + total * torch.maximum(is_dominant, padding.float())
        rest = torch.sort(order, dim=-1).indices[:, :left]
        real = left - torch.gather(padding.float(), 1, rest).sum(dim=1, keepdim=True).long()
        strides = torch.div(real, count, rounding_mode="floor").clamp(min=1)
        target_places = torch.arange(count, device=features.device) * strides
        target_indices = torch.gather(rest, 1, target_places)
        is_target = kept_mask(target_places, left) > 0

    cosine = cosines(gather_tokens(metric, rest), gather_tokens(metric, target_indices))
    targets = torch.arange(count, device=features.device)
    goes = (best(cosine.flatten(0, 1)).reshape(-1, left, 1) == targets) & ~is_target.unsqueeze(-1)
    if padding is not None:
        goes = goes & (torch.gather(padding.float(), 1, rest) == 0).unsqueeze(-1)
    members = goes.float().transpose(1, 2)
    size = members.sum(dim=-1, keepdim=True)
    own = gather_tokens(features, target_indices).float()
    summed = torch.matmul(members, gather_tokens(features, rest).float())
    merged = own + summed / size.clamp(min=1) if published else (own + summed) / (size + 1)
    return target_indices, merged.to(features.dtype)

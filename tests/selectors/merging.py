"""One step of token merging as the authors' code does it, with a CLS token that is never merged."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.selectors.tome import match, merge_pairs


def merge_step(
    features: Tensor, metric: Tensor, sizes: Tensor, r: int, cls: bool, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Merge `r` pairs; a CLS token, which comes first, is spared, and then tokens that stay keep their order.

    Parameters
    ----------
    features : Tensor of shape (B, N, D), float32
    metric : Tensor of shape (B, N, Dk)
    sizes : Tensor of shape (B, N, 1)
        How many encoder tokens each stands for.
    r : int
    cls : bool
    importance : Tensor of shape (B, N) or None
        What counts against merging a token away.
    """
    if not cls:
        return merge_pairs(features, sizes, match(metric, r, importance))
    against = torch.zeros(metric.shape[:2]) if importance is None else importance.clone()
    against[:, 0] = torch.inf
    pairs = match(metric, r, against)
    return merge_pairs(features, sizes, pairs._replace(unmerged=pairs.unmerged.sort(dim=-1).values))

"""Places in an order by score, from which sort keys with several criteria are built exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.selectors.base import top_k


def ranks(score: Tensor) -> Tensor:
    """How many tokens come before each by score (..., N): (..., N), float32, 0 for the highest; ties by lower index."""
    order = top_k(score, score.shape[-1])
    return torch.sort(order.float(), dim=-1).indices.float()

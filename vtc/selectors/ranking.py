"""Places in an order by score, from which sort keys with several criteria are built exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.selectors.base import top_k


def ranks(score: Tensor) -> Tensor:
    """How many tokens come before each by score (..., N): (..., N), float32, 0 for the highest; ties by lower index."""
    order = top_k(score, score.shape[-1])
    return torch.sort(order.float(), dim=-1).indices.float()


def ranks_within(score: Tensor, groups: Sequence[int]) -> Tensor:
    """As :func:`ranks` of scores (B, N), among the tokens of each one's own group; `groups` are whole numbers, N."""
    size = Counter(groups)
    before = {own: sum(size[other] for other in size if other < own) for own in size}
    start = torch.tensor([before[own] for own in groups], dtype=torch.float32, device=score.device)
    group = torch.tensor(groups, dtype=torch.float32, device=score.device)
    return ranks(-(group * len(groups) + ranks(score))) - start

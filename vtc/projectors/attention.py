"""Attention of few queries to many tokens, its parameters named as in PyTorch's ``MultiheadAttention``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Multi-head attention in plain operators.

    Parameters
    ----------
    width, heads : int
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (..., Q, C), keys and values (..., T, C); returns (..., Q, C)."""
        parts = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        asked, known, told = (self._heads(nn.functional.linear(x, weight, bias)) for x, weight, bias in parts)
        scores = torch.matmul(asked, known.transpose(-1, -2)) * asked.shape[-1] ** -0.5
        seen = torch.matmul(scores.softmax(dim=-1), told).transpose(-3, -2)
        out: Tensor = self.out_proj(seen.flatten(-2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(..., T, C) as (..., heads, T, C / heads)."""
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(-3, -2)

"""Attention of few queries to many tokens, its parameters named as in PyTorch's ``MultiheadAttention``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        asked, known, told = (F.linear(x, weight, bias) for x, weight, bias in parts)
        out: Tensor = self.out_proj(attend(asked, known, told, self.heads))
        return out


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """What queries (..., Q, C) see of values (..., T, C), heads end to end; returns (..., Q, C)."""
    asked, known, told = (x.reshape(*x.shape[:-1], heads, -1).transpose(-3, -2) for x in (query, key, value))
    scores = torch.matmul(asked, known.transpose(-1, -2)) * asked.shape[-1] ** -0.5
    return torch.matmul(scores.softmax(dim=-1), told).transpose(-3, -2).flatten(-2)

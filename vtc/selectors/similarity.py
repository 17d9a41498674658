"""Cosines between tokens, and the steps that greedy choices by them are made of.

A greedy choice holds a score (B, 1, N) and adds the best token step by step; steps are unrolled, so an exported graph
has each of their operators once for every token kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import gather_tokens


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) at length 1, float32; zeros stay zeros."""
    return nn.functional.normalize(vectors.float(), dim=-1)


def cosines(left: Tensor, right: Tensor | None = None) -> Tensor:
    """Compute the cosine of each token of one side to each token of the other.

    Parameters
    ----------
    left : Tensor of shape (B, M, D)
    right : Tensor of shape (B, N, D) or None
        None compares the tokens of `left` with each other.

    Returns
    -------
    Tensor of shape (B, M, N), float32
        Equal tokens have exactly equal rows and columns.
    """
    directions, first = unit(left), first_equal(left)
    others, first_other = (directions, first) if right is None else (unit(right), first_equal(right))
    return gather_tokens(read_at(torch.matmul(directions, others.transpose(1, 2)), first_other), first)


def with_diagonal(matrix: Tensor, value: float | Tensor) -> Tensor:
    """A matrix (B, N, N) with `value`, one or (B, 1, N), on its diagonal."""
    places = torch.arange(matrix.shape[-1], device=matrix.device)
    return torch.where(places.unsqueeze(1) == places, value, matrix)


def row_of(matrix: Tensor, pick: Tensor) -> Tensor:
    """Row (B, 1, M) of a matrix (B, N, M) at the pick (B, 1, 1)."""
    return torch.gather(matrix, 1, pick.expand(-1, -1, matrix.shape[-1]))


def column_of(matrix: Tensor, pick: Tensor) -> Tensor:
    """Column (B, M, 1) of a matrix (B, M, N) at the pick (B, 1, 1)."""
    return torch.gather(matrix, 2, pick.expand(-1, matrix.shape[1], -1))

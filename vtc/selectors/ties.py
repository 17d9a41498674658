"""Equal tokens get equal scores, so that the tie rule, the lowest index wins, holds on every processor.

The kernels of matrix products and sums round differently from column to column, so the scores of equal tokens may
differ in their last bit. Reading each score at the first of the equal tokens makes them one number whatever the kernel,
and changes no other score.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from vtc.selectors.base import best
from vtc.visual_tokens import gather_tokens

COMPARED = 3
"""First entries that say which token to compare a token with; all entries of all pairs would be too many."""


def first_equal(tokens: Tensor) -> Tensor:
    """Find the first token that equals each token.

    Tokens are compared with the first token that has the same `COMPARED` first entries. A token that differs from that
    one counts as equal to itself alone.

    Parameters
    ----------
    tokens : Tensor of shape (B, N, D)

    Returns
    -------
    Tensor of shape (B, N), int64
        Places among the N tokens.
    """
    values = tokens.float()
    entries = values[..., :COMPARED].unbind(dim=-1)
    alike = reduce(torch.logical_and, [entry.unsqueeze(1) == entry.unsqueeze(2) for entry in entries])
    first = best(alike.float()).squeeze(-1)
    difference = (values - gather_tokens(values, first)).abs().amax(dim=-1)
    return torch.where(difference == 0, first, torch.arange(values.shape[1], device=values.device))


def read_at(scores: Tensor, places: Tensor) -> Tensor:
    """Read scores (B, N) or (B, M, N) of N tokens at places (B, K): (B, K) or (B, M, K)."""
    if scores.dim() == 3:
        places = places.unsqueeze(1).expand(-1, scores.shape[1], -1)
    return torch.gather(scores, -1, places)

"""DivPrune: keep the tokens that lie farthest apart in the decoder's space (Alvar et al. 2025, arXiv 2503.02175).

Distance is 1 - cosine between projected tokens. The first token is the one whose nearest other token is farthest; each
further one has the largest distance to its nearest kept token. No attention and no question is read. This greedy
choice is what the authors run; the exact max-min problem that the paper states is not solved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.divprune import DivPruneEntry
from vtc.selectors.base import Selector, ascending, best, padding_last
from vtc.selectors.given import projected
from vtc.selectors.similarity import cosines, row_of, with_diagonal
from vtc.visual_tokens import VisualTokens


class DivPrune(Selector[DivPruneEntry]):
    """Farthest-point choice by cosine of the projected tokens; no parameters."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        return ascending(farthest(projected(tokens), keep, tokens.padding))


def farthest(features: Tensor, keep: int, padding: Tensor | None = None) -> Tensor:
    """Greedy max-min choice.

    Parameters
    ----------
    features : Tensor of shape (B, N, D)
    keep : int
    padding : Tensor of shape (B, N), bool, or None
        Tokens that come after all others.

    Returns
    -------
    Tensor of shape (B, keep), int64
        In the order of choice.
    """
    # Negated cosines rank as distances do. Below -1 on the diagonal, so that a token drops out once it is chosen.
    distance = with_diagonal(-cosines(features), -2.0)
    pick = best(padding_last(with_diagonal(distance, 2.0).amin(dim=-1).unsqueeze(1), padding))
    picks = [pick]
    # Padding lies below what is left and above what is chosen.
    nearest = row_of(distance, pick)
    if padding is not None:
        nearest = torch.minimum(nearest, padding_last(torch.full_like(nearest, 2.0), padding, last=-1.5))
    for _ in range(keep - 1):
        pick = best(nearest)
        picks.append(pick)
        nearest = torch.minimum(nearest, row_of(distance, pick))
    return torch.cat(picks, dim=-1).squeeze(1)

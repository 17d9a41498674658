"""ToDRE, stage 1: keep tokens that together resemble each other least (Li et al. 2025, arXiv 2505.18757).

The first token is the patch that the CLS token attends to most in the last layer that runs; each further one has the
smallest sum of cosines to all kept so far, in the decoder's space. An encoder without a CLS token starts from the token
most similar to the mean direction, where the paper starts from a random one. Stage 2, which drops all visual tokens
late in the decoder depending on what is there, has no fixed shape and is not done. Written from the paper; no code of
the authors is known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.todre import ToDREEntry
from vtc.selectors.base import Selector, ascending, best, padding_last
from vtc.selectors.given import projected
from vtc.selectors.similarity import cosines, row_of, with_diagonal
from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import VisualTokens


class ToDRE(Selector[ToDREEntry]):
    """Greedy max-sum diversity from the most attended patch on."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        attention = self.read(tokens, "start") if self.readings else None
        return ascending(least_alike(projected(tokens), keep, attention, tokens.padding))


def least_alike(features: Tensor, keep: int, attention: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
    """Greedy max-sum choice.

    Parameters
    ----------
    features : Tensor of shape (B, N, D)
    keep : int
    attention : Tensor of shape (B, N) or None
        Its highest is the first token; without it, the token most similar to the mean direction is.
    padding : Tensor of shape (B, N), bool, or None
        Tokens that come after all others.

    Returns
    -------
    Tensor of shape (B, keep), int64
        In the order of choice.
    """
    similarity = cosines(features)
    start = read_at(similarity.mean(dim=-1), first_equal(features)) if attention is None else attention.float()
    pick = best(padding_last(start.unsqueeze(1), padding))
    picks = [pick]
    # Sums of cosines stay within the count of tokens: a chosen one falls below all others.
    count = similarity.shape[-1]
    contrast = with_diagonal(-similarity, -4.0 * count if padding is None else -8.0 * count)
    score = row_of(contrast, pick)
    if padding is not None:
        score = score - 3.0 * count * padding.float().unsqueeze(1)
    for _ in range(keep - 1):
        pick = best(score)
        picks.append(pick)
        score = score + row_of(contrast, pick)
    return torch.cat(picks, dim=-1).squeeze(1)

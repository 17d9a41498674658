"""ToDRE, stage 1: keep tokens that together resemble each other least (Li et al. 2025, arXiv 2505.18757).

The first token is the patch that the CLS token attends to most; each further one has the smallest sum of cosines to
all kept so far, in the decoder's space. An encoder without a CLS token starts from the token most similar to the mean
direction, where the paper starts from a random one. Stage 2, which drops all visual tokens late in the decoder
depending on what is there, has no fixed shape and is not done. Written from the paper; no code of the authors is known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.selectors.base import Needs, Selector, ascending, best
from vtc.selectors.given import projected
from vtc.selectors.similarity import cosines, row_of, with_diagonal
from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import Reading, VisualTokens


class ToDRE(Selector):
    """Greedy max-sum diversity from the most attended patch on.

    Parameters
    ----------
    layer : int or None
        Encoder layer (0-based; the paper takes the last that feeds the projector) whose CLS attention names the first
        token; None for an encoder without a CLS token.
    """

    def __init__(self, layer: int | None) -> None:
        super().__init__()
        self.layer = layer

    @property
    def needs(self) -> Needs:
        readings = [] if self.layer is None else [Reading("cls_attention", self.layer)]
        return Needs(frozenset(readings), projected=True)

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        attention = None if self.layer is None else tokens.read("cls_attention", self.layer)
        return ascending(least_alike(projected(tokens), keep, attention))


def least_alike(features: Tensor, keep: int, attention: Tensor | None = None) -> Tensor:
    """Greedy max-sum choice.

    Parameters
    ----------
    features : Tensor of shape (B, N, D)
    keep : int
    attention : Tensor of shape (B, N) or None
        Its highest is the first token; without it, the token most similar to the mean direction is.

    Returns
    -------
    Tensor of shape (B, keep), int64
        In the order of choice.
    """
    similarity = cosines(features)
    start = read_at(similarity.mean(dim=-1), first_equal(features)) if attention is None else attention.float()
    pick = best(start.unsqueeze(1))
    picks = [pick]
    # Sums of cosines stay within the count of tokens: a chosen one falls behind all others.
    contrast = with_diagonal(-similarity, -4.0 * similarity.shape[-1])
    score = row_of(contrast, pick)
    for _ in range(keep - 1):
        pick = best(score)
        picks.append(pick)
        score = score + row_of(contrast, pick)
    return torch.cat(picks, dim=-1).squeeze(1)

"""Learned pruner: a small MLP rates each visual token on its own (LearnPruner, arXiv 2604.23950).

Token features before the projector go through Linear(D, D/2), GELU, Linear(D/2, 2); the second logit over the first
is the log-odds of keeping the token. A share of the budget goes to diversity: tokens picked one by one, each the one
least similar (cosine) to everything chosen so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Self

from vtc.facts.model import ModelFacts
from vtc.recipe.selectors.learned import LearnedEntry
from vtc.selectors.base import Selector, ascending, kept_mask, padding_last, top_k
from vtc.selectors.similarity import unit
from vtc.selectors.ties import first_equal, read_at
from vtc.selectors.trained import TrainedPart
from vtc.visual_tokens import VisualTokens, gather_tokens


class Learned(Selector[LearnedEntry], TrainedPart):
    """Top-k of the learned keep probability; a share of the budget is filled by max-min cosine picks.

    Parameters
    ----------
    entry : LearnedEntry
    width : int
        D, the width of a token.
    layers : sequence of int
        Encoder layers that run; the pruner reads the output of the last one.
    """

    noun = "pruner"

    def __init__(self, entry: LearnedEntry, width: int, layers: Sequence[int]) -> None:
        super().__init__(entry)
        self.width = width
        self.layers = tuple(layers)
        self.mlp = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 2))

    @classmethod
    def build(cls, entry: LearnedEntry, facts: ModelFacts, running: Sequence[int]) -> Self:
        return cls(entry, facts.token_width, running)

    @property
    def made_for(self) -> Mapping[str, str]:
        return {"encoder_layers": ",".join(map(str, self.layers)), "width": str(self.width)}

    def score(self, tokens: VisualTokens) -> Tensor:
        """Log-odds of keeping each token, (B, N): ranks as the probability does, and does not saturate."""
        logits: Tensor = self.mlp(tokens.features).float()
        return read_at(logits[..., 1] - logits[..., 0], first_equal(tokens.features))

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        diverse = min(round(keep * self.entry.diversity), keep - 1)
        chosen = top_k(padding_last(self.score(tokens), tokens.padding), keep - diverse)
        if diverse:
            chosen = add_diverse(tokens.features, chosen, diverse, tokens.padding)
        return ascending(chosen)


def add_diverse(features: Tensor, chosen: Tensor, count: int, padding: Tensor | None = None) -> Tensor:
    """Extend a choice by farthest-point picks: each the token whose highest cosine to the chosen ones is lowest.

    Parameters
    ----------
    features : Tensor of shape (B, N, D)
    chosen : Tensor of shape (B, K), int64
    count : int
        Tokens to add; the loop is unrolled, so an exported graph has one step for each.
    padding : Tensor of shape (B, N), bool, or None
        Tokens to add after all others.

    Returns
    -------
    Tensor of shape (B, K + count), int64
    """
    directions, first = unit(features), first_equal(features)

    def nearness(places: Tensor) -> Tensor:
        cosine = torch.matmul(directions, gather_tokens(directions, places).transpose(1, 2))
        return read_at(cosine.amax(dim=-1), first)

    similarity = nearness(chosen)
    taken = kept_mask(chosen, features.shape[1])
    for _ in range(count):
        # Cosines are at most 1, so 2 puts a taken token out of reach, and padding just before it.
        pick = top_k(-torch.where(taken > 0, 2.0, padding_last(similarity, padding, last=1.5)), 1)
        similarity = torch.maximum(similarity, nearness(pick))
        taken = taken.scatter(1, pick, 1.0)
        chosen = torch.cat([chosen, pick], dim=1)
    return chosen

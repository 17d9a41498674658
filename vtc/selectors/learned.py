"""Learned pruner: a small MLP rates each visual token on its own (LearnPruner, arXiv 2604.23950).

Token features before the projector go through Linear(D, D/2), GELU, Linear(D/2, 2); the second logit over the first
is the log-odds of keeping the token. A share of the budget goes to diversity: tokens picked one by one, each the one
least similar (cosine) to everything chosen so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import Self

from vtc.errors import InputError
from vtc.selectors.base import Selector, ascending, top_k
from vtc.selectors.similarity import unit
from vtc.selectors.ties import first_equal, read_at
from vtc.selectors.trained import fill, read_trained
from vtc.visual_tokens import VisualTokens, gather_tokens


class Learned(Selector):
    """Top-k of the learned keep probability, with `diversity` of the budget filled by max-min cosine picks.

    Parameters
    ----------
    width : int
        D, the width of the encoder.
    diversity : float
        Share of the budget, in [0, 1), rounded to whole tokens.
    """

    def __init__(self, width: int, diversity: float = 0.1) -> None:
        super().__init__()
        self.width = width
        self.diversity = diversity
        self.mlp = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 2))

    @classmethod
    def from_checkpoint(
        cls, path: Path, *, width: int, model_digest: str, layers: Sequence[int], diversity: float = 0.1
    ) -> Self:
        """Load a trained pruner.

        Parameters
        ----------
        path : Path
            A safetensors file with the MLP's tensors and, as metadata, ``model_sha256`` of the model and
            ``encoder_layers`` that it was trained on.
        layers : sequence of int
            Encoder layers that run here.

        Raises
        ------
        InputError
            If the file is missing or damaged, or was trained on another model, other layers or another width.
        """
        selector = cls(width, diversity)
        tensors, metadata = read_trained(path, "pruner", model_digest)
        if metadata.get("encoder_layers") != layer_list(layers):
            raise InputError(
                f"{path}: pruner reads the output of encoder layers {metadata.get('encoder_layers')}, "
                f"here {layer_list(layers)} run; train it again"
            )
        fill(selector, tensors, path, f"pruner for an encoder of width {width}")
        return selector

    def score(self, tokens: VisualTokens) -> Tensor:
        """Log-odds of keeping each token, (B, N): ranks as the probability does, and does not saturate."""
        logits: Tensor = self.mlp(tokens.features).float()
        return read_at(logits[..., 1] - logits[..., 0], first_equal(tokens.features))

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        diverse = min(round(keep * self.diversity), keep - 1)
        chosen = top_k(self.score(tokens), keep - diverse)
        if diverse:
            chosen = add_diverse(tokens.features, chosen, diverse)
        return ascending(chosen)


def layer_list(layers: Sequence[int]) -> str:
    """Layer numbers as metadata spells them: ``0,1,2``."""
    return ",".join(map(str, layers))


def add_diverse(features: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Extend a choice by farthest-point picks: each the token whose highest cosine to the chosen ones is lowest.

    Parameters
    ----------
    features : Tensor of shape (B, N, D)
    chosen : Tensor of shape (B, K), int64
    count : int
        Tokens to add; the loop is unrolled, so an exported graph has one step for each.

    Returns
    -------
    Tensor of shape (B, K + count), int64
    """
    directions, first = unit(features), first_equal(features)

    def nearness(places: Tensor) -> Tensor:
        cosine = torch.matmul(directions, gather_tokens(directions, places).transpose(1, 2))
        return read_at(cosine.amax(dim=-1), first)

    similarity = nearness(chosen)
    kept_mask = torch.zeros_like(similarity).scatter(1, chosen, 1.0)
    for _ in range(count):
        # Cosines are at most 1, so 2 puts a taken token out of reach.
        pick = top_k(-torch.where(kept_mask > 0, 2.0, similarity), 1)
        similarity = torch.maximum(similarity, nearness(pick))
        kept_mask = kept_mask.scatter(1, pick, 1.0)
        chosen = torch.cat([chosen, pick], dim=1)
    return chosen

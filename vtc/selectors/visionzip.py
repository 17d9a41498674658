"""VisionZip: dominant tokens by attention, and the rest summed up in a few contextual ones (arXiv 2412.04467).

Dominant tokens are those of the highest attention. What is left, in raster order, gives every s-th token as a target,
s = max(1, left // contextual); each other one joins the target whose key has the highest cosine with its own. A
contextual token is the mean of a target and all that joined it. The original keeps the CLS token as well; here it is
never among the tokens. Without a CLS token, attention is that which all patches pay (as EffiVLM-Bench does for SigLIP).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.selectors.base import Merger, Needs, ascending, ascending_with, top_k
from vtc.selectors.contextual import contextual_merge
from vtc.visual_tokens import Reading, ReadingKind, VisualTokens, gather_tokens


class VisionZip(Merger):
    """Top-k by attention plus contextual tokens, each standing at the place of its target.

    Parameters
    ----------
    layer : int
        Encoder layer (0-based) whose attention and keys are read; the authors take the one whose output goes on.
    contextual : float
        Share of the budget for contextual tokens, rounded to whole tokens; at least one token stays dominant.
    has_cls : bool
        Whether the CLS token's attention is the score, or else the attention received from all.
    as_published : bool
        Make a contextual token the SUM of the target and the mean of those that joined it, which is what the authors'
        code does and about twice as long as any token of the encoder.
    """

    def __init__(
        self, layer: int, contextual: float = 10 / 64, has_cls: bool = True, as_published: bool = False
    ) -> None:
        super().__init__()
        self.layer = layer
        self.contextual = contextual
        self.attention: ReadingKind = "cls_attention" if has_cls else "received_attention"
        self.as_published = as_published

    @property
    def needs(self) -> Needs:
        return Needs(frozenset({Reading(self.attention, self.layer), Reading("keys", self.layer)}))

    def merge(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor]:
        contextual = min(max(round(keep * self.contextual), 0), keep - 1)
        score = tokens.read(self.attention, self.layer).float()
        dominant = ascending(top_k(score, keep - contextual))
        if not contextual:
            return dominant, gather_tokens(tokens.features, dominant)
        keys = tokens.read("keys", self.layer)
        targets, merged = contextual_merge(tokens.features, keys, dominant, contextual, self.as_published)
        features = torch.cat([gather_tokens(tokens.features, dominant), merged], dim=1)
        return ascending_with(torch.cat([dominant, targets], dim=1), features)

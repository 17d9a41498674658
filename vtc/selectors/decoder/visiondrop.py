"""VisionDrop: the image rates itself inside the decoder, and what it drops is merged into a few contextual tokens.

arXiv 2506.22283. Score of visual token v: attention of the image's tokens to it in the layer behind the
cut, under the decoder's causal mask and with the softmax over the whole row, mean over heads and over the image's
tokens; no text asks. The best scored are dominant; the others are merged as :mod:`vtc.selectors.contextual` says, by
the keys of that layer, rotated, mean over heads. Under the causal mask early tokens are seen by more others and score
higher: that is the method's.

The paper keeps 30 + 5, 22 + 4 and 16 + 3 tokens before layers 8, 16 and 24 of 32. A contextual token stays at its
target's place; the authors put them behind the dominant ones and number all anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.models.base import VLMAdapter
from vtc.selectors.base import ascending_with, top_k
from vtc.selectors.contextual import contextual_merge
from vtc.selectors.decoder.base import DecoderMerger, DecoderTokens
from vtc.visual_tokens import gather_tokens


class VisionDrop(DecoderMerger):
    """Tokens that the image looks at, and contextual ones made of the rest.

    Parameters
    ----------
    adapter : VLMAdapter
    behind, before : int
        Decoder layers around the cut, as the model numbers them.
    contextual : float
        Share of the budget, in [0, 1), that goes to merged tokens, rounded to whole ones; at least one is dominant.
    as_published : bool
        A contextual token is its target plus the mean of what went to it, as in the authors' code, and not the mean of
        them all.
    """

    def __init__(
        self, adapter: VLMAdapter, behind: int, before: int, *, contextual: float = 0.15, as_published: bool = False
    ) -> None:
        super().__init__(adapter, behind, before)
        self.contextual = contextual
        self.as_published = as_published

    def score(self, tokens: DecoderTokens) -> Tensor:
        """Attention that each visual token gets from the image: (I, K), float32."""
        return self.attention(tokens, tokens.visual).mean(dim=1)

    def merge(self, tokens: DecoderTokens, keep: int) -> tuple[Tensor, Tensor]:
        contextual = min(round(keep * self.contextual), keep - 1)
        states = self.visual_states(tokens)
        dominant = top_k(self.score(tokens), keep - contextual)
        kept = gather_tokens(states, dominant)
        if not contextual:
            return ascending_with(dominant, kept)
        metric = gather_tokens(self.keys(tokens).float().mean(dim=2), tokens.visual)
        targets, merged = contextual_merge(states, metric, dominant, contextual, self.as_published)
        return ascending_with(torch.cat([dominant, targets], dim=1), torch.cat([kept, merged], dim=1))

"""VisionDrop: the image rates itself inside the decoder, and what it drops is merged into a few contextual tokens.

arXiv 2506.22283. Score of visual token v: attention of the image's tokens to it in the layer after the cut, under the
decoder's causal mask and with the softmax over the whole row, mean over heads and over the image's tokens; no text
asks. The best scored are dominant; the others are merged as :mod:`vtc.selectors.contextual` says, by the keys of that
layer, rotated, mean over heads. Under the causal mask early tokens are seen by more others and score higher: that is
the method's.

The paper keeps 30 + 5, 22 + 4 and 16 + 3 tokens before layers 8, 16 and 24 of 32. A contextual token stays at its
target's place; the authors put them after the dominant ones and number all anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.decoder.visiondrop import VisionDropEntry
from vtc.selectors.base import ascending_with, padding_last, top_k
from vtc.selectors.contextual import contextual_merge
from vtc.selectors.decoder.base import DecoderMerger, DecoderTokens
from vtc.visual_tokens import gather_tokens


class VisionDrop(DecoderMerger[VisionDropEntry]):
    """Tokens that the image looks at, and contextual ones made of the rest."""

    def score(self, tokens: DecoderTokens) -> Tensor:
        """Attention that each visual token gets from the image: (I, K), float32."""
        return self.attention(tokens, tokens.visual).mean(dim=1)

    def merge(self, tokens: DecoderTokens, keep: int) -> tuple[Tensor, Tensor]:
        contextual = min(round(keep * self.entry.contextual), keep - 1)
        states = self.visual_states(tokens)
        dominant = top_k(padding_last(self.score(tokens), tokens.padding), keep - contextual)
        kept = gather_tokens(states, dominant)
        if not contextual:
            return ascending_with(dominant, kept)
        metric = gather_tokens(self.keys(tokens).float().mean(dim=2), tokens.visual)
        rule = self.entry.as_published, tokens.padding
        targets, merged = contextual_merge(states, metric, dominant, contextual, *rule)
        return ascending_with(torch.cat([dominant, targets], dim=1), torch.cat([kept, merged], dim=1))

"""FastV: keep the visual tokens that the prompt's last token has just looked at (Chen et al. 2024, arXiv 2403.06764).

Score of visual token v: attention of the last text token to it in the layer before the cut, softmax over the whole row,
mean over heads.
"""

from __future__ import annotations

from torch import Tensor

from vtc.recipe.selectors.decoder.fastv import FastVEntry
from vtc.selectors.decoder.base import DecoderScorer, DecoderTokens


class FastV(DecoderScorer[FastVEntry]):
    """Top-k of the last text token's attention in the layer before the cut (the paper cuts before layer 2)."""

    def score(self, tokens: DecoderTokens) -> Tensor:
        return self.attention(tokens, tokens.queries[:, -1:]).squeeze(1)

"""PyramidDrop: at each of several cuts keep the visual tokens that the instruction's last token is about to look at.

Xing et al. 2024, arXiv 2410.17247. Score of visual token v: attention of the last text token to it in the layer after
the cut, softmax over the whole row, mean over heads; one row of that layer's queries and keys is computed ahead for it.
The pyramid is a recipe's: the paper cuts before layers 8, 16 and 24 of 32 and keeps half of the tokens each time.
"""

from __future__ import annotations

from torch import Tensor

from vtc.recipe.selectors.decoder.pyramiddrop import PyramidDropEntry
from vtc.selectors.decoder.base import DecoderScorer, DecoderTokens


class PyramidDrop(DecoderScorer[PyramidDropEntry]):
    """Top-k of the last text token's attention in the layer after the cut."""

    def score(self, tokens: DecoderTokens) -> Tensor:
        return self.attention(tokens, tokens.queries[:, -1:]).squeeze(1)

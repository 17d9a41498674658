"""FastV: keep the visual tokens that the prompt's last token has just looked at (Chen et al. 2024, arXiv 2403.06764).

Score of visual token v: attention of the last text token to it in the layer in front of the cut, softmax over the
whole row, mean over heads.
"""

from __future__ import annotations

from torch import Tensor

from vtc.selectors.decoder.base import DecoderScorer, DecoderTokens


class FastV(DecoderScorer):
    """Top-k of the last text token's attention in the layer in front of the cut (the paper cuts before layer 2)."""

    reads_before = True

    def score(self, tokens: DecoderTokens) -> Tensor:
        return self.attention(tokens, tokens.queries[:, -1:]).squeeze(1)

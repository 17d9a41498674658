"""Text attention: keep the visual tokens that the question looks at, by queries and keys of one decoder layer.

Score of visual token v: softmax over the whole row of q_t . k_v / sqrt(d) in the layer behind the cut, mean over heads
and over the text tokens t that ask. All text behind the image asks in LearnPruner (arXiv 2604.23950); letting only
SparseVLM's raters ask (arXiv 2410.04417) and leaving out rotary positions, as FEATHER does (arXiv 2412.13180), are
variants.
"""

from __future__ import annotations

from torch import Tensor

from vtc.models.base import VLMAdapter
from vtc.selectors.decoder.base import DecoderScorer, DecoderTokens, mean_over_queries
from vtc.selectors.decoder.sparsevlm import rater_weights
from vtc.visual_tokens import gather_tokens


class TextAttention(DecoderScorer):
    """Top-k of the attention that an image's tokens get from the text.

    Parameters
    ----------
    adapter : VLMAdapter
    behind, before : int
        Decoder layers around the cut, as the model numbers them.
    raters : bool
        Let only those text tokens ask that resemble the image more than the average one does.
    rope : bool
        Whether queries and keys carry their rotary positions.
    """

    def __init__(
        self, adapter: VLMAdapter, behind: int, before: int, *, raters: bool = False, rope: bool = True
    ) -> None:
        super().__init__(adapter, behind, before)
        self.raters = raters
        self.rope = rope

    def score(self, tokens: DecoderTokens) -> Tensor:
        weights = tokens.query_mask.float()
        if self.raters:
            weights = rater_weights(self.visual_states(tokens), gather_tokens(tokens.hidden, tokens.queries), weights)
        return mean_over_queries(self.attention(tokens, tokens.queries, rope=self.rope), weights)

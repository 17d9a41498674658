"""Text attention: keep the visual tokens that the question looks at, by queries and keys of one decoder layer.

Score of visual token v: softmax over the whole row of q_t . k_v / sqrt(d) in the layer after the cut, mean over heads
and over the text tokens t that ask. All text after the image asks in LearnPruner (arXiv 2604.23950); letting only
SparseVLM's raters ask (arXiv 2410.04417) and leaving out rotary positions, as FEATHER does (arXiv 2412.13180), are
variants.
"""

from __future__ import annotations

from torch import Tensor

from vtc.recipe.selectors.decoder.text_attention import TextAttentionEntry
from vtc.selectors.decoder.base import DecoderScorer, DecoderTokens, mean_over_queries
from vtc.selectors.decoder.sparsevlm import rater_weights
from vtc.visual_tokens import gather_tokens


class TextAttention(DecoderScorer[TextAttentionEntry]):
    """Top-k of the attention that an image's tokens get from the text."""

    def score(self, tokens: DecoderTokens) -> Tensor:
        weights = tokens.query_mask.float()
        if self.entry.queries == "raters":
            weights = rater_weights(self.visual_states(tokens), gather_tokens(tokens.hidden, tokens.queries), weights)
        return mean_over_queries(self.attention(tokens, tokens.queries, rope=self.entry.rope), weights)

"""Text attention: keep the visual tokens that the question looks at, by queries and keys of one decoder layer.

Score of visual token v: softmax over the whole row of q_t . k_v / sqrt(d) in the layer behind the cut, mean over heads
and over the text tokens t that ask. All text behind the image asks in LearnPruner (arXiv 2604.23950).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.models.base import VLMAdapter
from vtc.selectors.decoder.base import DecoderScorer, DecoderTokens, mean_over_queries
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
        rows = self.attention(tokens, tokens.queries, rope=self.rope)
        weights = tokens.query_mask.float()
        if self.raters:
            asking = gather_tokens(self.entering(tokens), tokens.queries)
            weights = rater_weights(gather_tokens(self.entering(tokens), tokens.visual), asking, weights)
        return mean_over_queries(rows, weights)


def rater_weights(image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """1 for a text token of above-average relevance: softmax over the text of its products with visual tokens, mean
    over these (SparseVLM, arXiv 2410.04417, equation 6).

    Parameters
    ----------
    image : Tensor of shape (I, K, E)
    text : Tensor of shape (I, Q, E)
    mask : Tensor of shape (I, Q)

    Returns
    -------
    Tensor of shape (I, Q), float32
    """
    products = torch.matmul(image.float(), text.float().transpose(1, 2))
    products = torch.where(mask.unsqueeze(1) > 0, products, torch.finfo(torch.float32).min)
    relevance = torch.softmax(products, dim=-1).mean(dim=1)
    mean = (relevance * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
    return mask * (relevance >= mean).float()

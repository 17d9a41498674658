"""Text attention: keep the visual tokens that the question looks at, by queries and keys of one decoder layer.

Score of visual token v: softmax over the whole row of q_t . k_v / sqrt(d) in the layer behind the cut, mean over heads
and over the text tokens t that ask. All text behind the image asks in LearnPruner (arXiv 2604.23950), the last token
in FastV (arXiv 2403.06764) and PyramidDrop (arXiv 2410.17247), SparseVLM's raters (arXiv 2410.04417) as a choice of
the text; without rotary positions it is FEATHER's score (arXiv 2412.13180).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.models.base import VLMAdapter
from vtc.selectors.base import ascending, top_k
from vtc.visual_tokens import gather_tokens


class TextAttention(nn.Module):
    """Top-k of the attention that an image's tokens get from the text.

    Parameters
    ----------
    adapter : VLMAdapter
    layer : int
        Decoder layer, as the model numbers it, whose queries and keys are compared.
    raters : bool
        Let only those text tokens ask that resemble the image more than the average one does.
    rope : bool
        Whether queries and keys carry their rotary positions.
    """

    def __init__(self, adapter: VLMAdapter, layer: int, *, raters: bool = False, rope: bool = True) -> None:
        super().__init__()
        self.adapter = adapter
        self.layer = layer
        self.raters = raters
        self.rope = rope

    def score(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        visual: Tensor,
        queries: Tensor,
        query_mask: Tensor,
    ) -> Tensor:
        """Attention to each visual token of I images.

        Parameters
        ----------
        hidden : Tensor of shape (I, S, E)
            For each image the row that it stands in, as it enters the layer.
        attention_mask, position_ids : Tensors of shape (I, S), int64
        visual : Tensor of shape (I, K), int64
            Where the image's tokens stand in its row.
        queries, query_mask : Tensors of shape (I, Q), int64
            Where the text tokens that ask stand; 0 in the mask is padding.

        Returns
        -------
        Tensor of shape (I, K), float32
        """
        places = torch.arange(hidden.shape[1], device=hidden.device)
        seen = (places <= queries.unsqueeze(-1)) & attention_mask.bool().unsqueeze(1)
        rows = self.adapter.attention_rows(self.layer, hidden, queries, seen, position_ids, rope=self.rope)
        rows = torch.gather(rows, 2, visual.unsqueeze(1).expand(-1, queries.shape[1], -1))
        weights = query_mask.float()
        if self.raters:
            weights = self._rater_weights(gather_tokens(hidden, visual), gather_tokens(hidden, queries), weights)
        return (rows * weights.unsqueeze(-1)).sum(dim=1) / weights.sum(dim=1, keepdim=True)

    @staticmethod
    def _rater_weights(image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """1 for a text token of above-average relevance: softmax over the text of its products with visual tokens, mean
        over these (SparseVLM, equation 6).
        """
        products = torch.matmul(image.float(), text.float().transpose(1, 2))
        products = torch.where(mask.unsqueeze(1) > 0, products, torch.finfo(torch.float32).min)
        relevance = torch.softmax(products, dim=-1).mean(dim=1)
        mean = (relevance * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        return mask * (relevance >= mean).float()

    def select(self, score: Tensor, keep: int) -> Tensor:
        """The `keep` highest scores (I, K) of each image: (I, keep), ascending; of equal ones the lower index wins."""
        return ascending(top_k(score, keep))

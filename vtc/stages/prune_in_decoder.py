"""Prune in the decoder: before a decoder layer, the visual tokens that the prompt does not look at leave.

The hidden states of the tokens that stay go on at the positions they had. Layers in front of the cut have cached all
tokens, those behind it cache the kept ones only, so compute and cache both shrink.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.selectors.text_attention import TextAttention
from vtc.visual_tokens import gather_tokens


class PruneInDecoder(nn.Module):
    """Between two segments: keep exactly `keep` visual tokens of each image; exported as a token selector graph.

    Parameters
    ----------
    selector : TextAttention
    tokens, keep : int
        Visual tokens of an image before and behind the cut.
    """

    def __init__(self, selector: TextAttention, tokens: int, keep: int) -> None:
        super().__init__()
        self.selector = selector
        self.tokens = tokens
        self.keep = keep

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        image_rows: Tensor,
        image_columns: Tensor,
        query_columns: Tensor,
        query_mask: Tensor,
        layout: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cut a batch of B rows with I images; the last five arguments are those of :class:`vtc.sequence.Cut`.

        Parameters
        ----------
        hidden : Tensor of shape (B, S, E)
        attention_mask, position_ids : Tensors of shape (B, S), int64
        image_rows : Tensor of shape (I,), int64
        image_columns : Tensor of shape (I, K), int64
        query_columns, query_mask : Tensors of shape (I, Q), int64
        layout : Tensor of shape (B, S'), int64

        Returns
        -------
        hidden : Tensor of shape (B, S', E)
        position_ids : Tensor of shape (B, S'), int64
        keep_indices : Tensor of shape (I, keep), int64
            Which of the K tokens stay, ascending.
        """
        score = self.selector.score(
            hidden.index_select(0, image_rows),
            attention_mask.index_select(0, image_rows),
            position_ids.index_select(0, image_rows),
            image_columns,
            query_columns,
            query_mask,
        )
        keep_indices = self.selector.select(score, self.keep)
        kept = torch.gather(image_columns, 1, keep_indices).flatten()
        places = torch.arange(hidden.shape[1], device=hidden.device)
        source = torch.cat([places, kept])[layout]
        return gather_tokens(hidden, source), torch.gather(position_ids, 1, source), keep_indices

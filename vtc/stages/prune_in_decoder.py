"""Prune in the decoder: before a decoder layer, the visual tokens that the prompt does not look at leave.

The hidden states of the tokens that stay go on at the positions they had. Layers before the cut have cached all
tokens, those after it cache the kept ones only, so compute and cache both shrink.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vtc.selectors.decoder.base import DecoderSelector, DecoderTokens
from vtc.visual_tokens import gather_positions, gather_tokens


class Cut(NamedTuple):
    """Where the tokens of a batch stand around a cut (see :class:`vtc.inputs.schedule.SegmentSchedule`).

    Attributes
    ----------
    image_rows : Tensor of shape (I,), int64
    image_columns : Tensor of shape (I, K), int64
    query_columns, query_mask : Tensors of shape (I, Q), int64
    layout : Tensor of shape (B, S'), int64
    """

    image_rows: Tensor
    image_columns: Tensor
    query_columns: Tensor
    query_mask: Tensor
    layout: Tensor


class PruneInDecoder(nn.Module):
    """Between two segments: keep exactly `keep` visual tokens of each span; exported as a token selector graph.

    Parameters
    ----------
    selector : DecoderSelector
    tokens, keep : int
        Visual tokens of a span before and after the cut.
    """

    def __init__(self, selector: DecoderSelector, tokens: int, keep: int) -> None:
        super().__init__()
        self.selector = selector
        self.tokens = tokens
        self.keep = keep

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cut: Cut,
        before: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cut a batch of B rows with I spans.

        Parameters
        ----------
        hidden : Tensor of shape (B, S, E')
            Hidden states, and after them what is carried.
        attention_mask : Tensor of shape (B, S), int64
        position_ids : Tensor of shape (B, S) or (3, B, S), int64
        cut : Cut
        before : Tensor of shape (B, S, E) or None
            Hidden states entering the layer before the cut, where the selector reads them.

        Returns
        -------
        hidden : Tensor of shape (B, S', E')
        position_ids : Tensor of shape (B, S') or (3, B, S'), int64
        keep_indices : Tensor of shape (I, keep), int64
            Which of the K tokens stay, ascending.
        """
        width = self.selector.adapter.facts.decoder.width
        tokens = DecoderTokens(
            hidden=hidden[..., :width].index_select(0, cut.image_rows),
            before=None if before is None else before.index_select(0, cut.image_rows),
            attention_mask=attention_mask.index_select(0, cut.image_rows),
            position_ids=position_ids.index_select(-2, cut.image_rows),
            visual=cut.image_columns,
            queries=cut.query_columns,
            query_mask=cut.query_mask,
        )
        keep_indices, merged = self.selector.prune(tokens, self.keep)
        kept = torch.gather(cut.image_columns, 1, keep_indices).flatten()
        length = hidden.shape[1]
        source = torch.cat([torch.arange(length, device=hidden.device), kept])[cut.layout]
        result = gather_tokens(hidden, source)
        if merged is not None:
            flat = merged.to(hidden.dtype).flatten(0, 1)
            replaced = torch.cat([flat[(cut.layout - length).clamp(min=0)], result[..., width:]], dim=-1)
            result = torch.where((cut.layout >= length).unsqueeze(-1), replaced, result)
        return result, gather_positions(position_ids, source), keep_indices

"""Prune in the decoder: before a decoder layer, the visual tokens that the prompt does not look at leave.

The hidden states of the tokens that stay go on at the positions they had. Layers before the cut have cached all
tokens, those after it cache the kept ones only, so compute and cache both shrink.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.recipe.stages import PruneInDecoderEntry
from vtc.selectors.decoder import build_decoder_selector
from vtc.selectors.decoder.base import DecoderSelector, DecoderTokens
from vtc.stages.base import BuildContext, Cut, CutStage
from vtc.visual_tokens import gather_positions, gather_tokens


class PruneInDecoder(CutStage):
    """Between two segments: keep exactly `keep` visual tokens of each span; exported as a token selector graph.

    Parameters
    ----------
    selector : DecoderSelector
    tokens, keep : int
        Visual tokens of a span before and after the cut.
    """

    def __init__(self, selector: DecoderSelector[Any], tokens: int, keep: int) -> None:
        super().__init__(tokens, keep, selector.entry.query_tokens, selector.entry.reads_before)
        self.selector = selector

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cut: Cut,
        before: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the tokens that the selector chooses; see :class:`~vtc.stages.base.CutStage`."""
        width = self.selector.adapter.facts.decoder.width
        tokens = DecoderTokens(
            hidden=hidden[..., :width].index_select(0, cut.image_rows),
            before=None if before is None else before.index_select(0, cut.image_rows),
            attention_mask=attention_mask.index_select(0, cut.image_rows),
            position_ids=position_ids.index_select(-2, cut.image_rows),
            visual=cut.image_columns,
            queries=cut.query_columns,
            query_mask=cut.query_mask,
            padding=None if cut.padding is None else cut.padding > 0,
        )
        keep_indices, merged = self.selector.prune(tokens, self.keep)
        length = hidden.shape[1]
        source = cut.sources(length, keep_indices)
        result = gather_tokens(hidden, source)
        if merged is not None:
            flat = merged.to(hidden.dtype).flatten(0, 1)
            replaced = torch.cat([flat[(cut.layout - length).clamp(min=0)], result[..., width:]], dim=-1)
            result = torch.where((cut.layout >= length).unsqueeze(-1), replaced, result)
        return result, gather_positions(position_ids, source), keep_indices


def build(entry: PruneInDecoderEntry, context: BuildContext) -> PruneInDecoder:
    """Make the stage with the recipe's selector, for the decoder layers around its cut."""
    after, before = context.plan.around(context.plan.segment_of(context.number))
    selector = build_decoder_selector(entry.selector, context.adapter, after, before)
    return PruneInDecoder(selector, context.tokens_per_span, context.keep_per_span)

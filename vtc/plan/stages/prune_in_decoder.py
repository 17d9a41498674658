"""`prune_in_decoder` in numbers: before a decoder layer, a selector keeps some of the visual tokens."""

from __future__ import annotations

from vtc.plan.flops import text_attention_flops
from vtc.plan.state import Context, Step, TokenState
from vtc.recipe.stages import PruneInDecoderEntry


def step(entry: PruneInDecoderEntry, state: TokenState, context: Context) -> Step:
    """Keep what the selector chooses; layers from the cut on see no more."""
    keep = context.kept(entry.keep, state.tokens)
    layer, text = context.decoder.cut_of(context.number), context.text_tokens
    rows = entry.selector.rows(text, state.tokens)
    flops = text_attention_flops(context.facts.decoder, rows, text + state.tokens)
    return Step(
        state.kept(keep).costing("selection", flops),
        f"before decoder layer {layer}, {entry.selector.described}",
        layer=layer,
        parameters=entry.selector.parameters(),
    )

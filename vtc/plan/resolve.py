"""What a recipe comes to for one model: tokens per stage and per decoder layer, segments, FLOPs, KV bytes.

A recipe that cannot work on the model is refused here, before any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Literal

from vtc.errors import InputError
from vtc.facts.layout import Grid, ImageLayout
from vtc.facts.model import DecoderFacts, ModelFacts
from vtc.plan import flops
from vtc.plan.budget import budget_keeps
from vtc.plan.combination import check_combination
from vtc.plan.depth import DecoderDepth, EncoderDepth, decoder_depth, encoder_depth
from vtc.plan.faults import Faults
from vtc.plan.stages import NUMBERS
from vtc.plan.state import Context, TokenState
from vtc.plan.token_plan import SegmentPlan, StagePlan, TokenPlan
from vtc.recipe import Recipe
from vtc.recipe.values import Positions
from vtc.tables import line


def check(recipe: Recipe) -> None:
    """Refuse a recipe whose stages cannot work together on any model.

    Raises
    ------
    RecipeError
        With every reason, one a line; `plan` finds these too, and what depends on the model.
    """
    faults = Faults(recipe.source)
    check_combination(recipe, faults)
    faults.raise_found()


def plan(recipe: Recipe, facts: ModelFacts, *, text_tokens: int = 32, bytes_per_value: int = 2) -> TokenPlan:
    """Resolve a recipe against a model.

    Parameters
    ----------
    recipe
        What to do.
    facts
        The model's sizes.
    text_tokens
        Tokens of the prompt that are not visual, template included, for FLOPs and KV bytes.
    bytes_per_value
        Bytes of one number in the KV cache: 2 for fp16, 4 for fp32.

    Returns
    -------
    TokenPlan
        The numbers, for one image; at the largest of several budgets, with the others under `smaller`.

    Raises
    ------
    RecipeError
        With every reason why the recipe cannot work on this model, one a line, each with its place in the
        recipe.
    """
    made = plans(recipe, facts, text_tokens=text_tokens, bytes_per_value=bytes_per_value)
    *smaller, largest = made.values()
    return replace(largest, smaller=tuple(smaller))


def plans(
    recipe: Recipe, facts: ModelFacts, *, text_tokens: int = 32, bytes_per_value: int = 2
) -> dict[int | None, TokenPlan]:
    """Resolve a recipe at each of its budgets; parameters and errors are those of :func:`plan`.

    Returns
    -------
    dict
        Budget, ascending, to plan; the only plan of a recipe without budgets is that of None.
    """
    if text_tokens < 0 or bytes_per_value < 1:
        raise InputError(f"text_tokens ({text_tokens}) and bytes_per_value ({bytes_per_value}) cannot be negative")
    faults = Faults(recipe.source)
    check_combination(recipe, faults, facts)
    encoder = encoder_depth(recipe, facts, faults)
    decoder = decoder_depth(recipe, facts, faults)
    budgets = recipe.budgets or (None,)
    followed = {
        keep: _follow(recipe if keep is None else recipe.at_budget(keep), facts, encoder, decoder, text_tokens, faults)
        for keep in budgets
    }
    _check_placement(recipe, facts, next(iter(followed.values()))[1], faults)
    faults.raise_found()
    return {
        keep: _counted(*tokens, recipe, facts, encoder, decoder, text_tokens, bytes_per_value)
        for keep, tokens in followed.items()
    }


def _check_placement(recipe: Recipe, facts: ModelFacts, entering: TokenState, faults: Faults) -> None:
    """Report devices that do not divide the experts that stages leave."""
    wanted, decoder = recipe.experts, entering.decoder
    if wanted is None:
        return
    if decoder.experts == 1:
        faults.add_at(("experts",), f"{facts.model_type} is dense here, it has no experts to place; leave it out")
    elif decoder.visual_experts:
        faults.add_at(("experts",), "visual tokens have experts of their own, which no server knows; leave it out")
    elif problem := wanted.problem(decoder.experts):
        faults.add_at(("experts", "devices"), problem)


def _counted(
    stages: tuple[StagePlan, ...],
    entering: TokenState,
    recipe: Recipe,
    facts: ModelFacts,
    encoder: EncoderDepth,
    decoder: DecoderDepth,
    text_tokens: int,
    bytes_per_value: int,
) -> TokenPlan:
    """What the tokens that :func:`_follow` gave come to."""
    layout, spans = facts.layout, facts.layout.spans
    keep = spans * entering.tokens
    positions, position_span, position_grids = _positions(entering, facts)
    kept_at = {layer: stages[number].tokens_out for layer, number in decoder.cuts.items()}
    visual = tuple(_visual_tokens(layer, keep, kept_at) if decoder.sees_image(layer) else 0 for layer in decoder.kept)
    lengths = [text_tokens + count for count in visual]
    parts = _flops_parts(entering, facts, encoder.kept, lengths, visual)
    return TokenPlan(
        stages=stages,
        visual_tokens_in=spans * layout.tokens,
        keep=keep,
        has_places=entering.has_places,
        spans=spans,
        positions=positions,
        position_span=position_span,
        position_grids=position_grids,
        encoder_layers=encoder.kept,
        decoder_layers=decoder.kept,
        decoder_visual_tokens=visual,
        segments=_segments(decoder, visual),
        layer_average=sum(visual) / facts.decoder.layers,
        text_tokens=text_tokens,
        flops={
            "exact": sum(parts.values()),
            "fastv": flops.fastv_flops(entering.decoder, lengths),
            "pyramiddrop": flops.pyramiddrop_flops(entering.decoder, lengths),
            **_mixture_flops(entering.decoder, lengths, visual, sum(parts.values())),
        },
        flops_parts=parts,
        kv_bytes=flops.kv_bytes(facts.decoder, lengths, bytes_per_value),
        provisional=tuple(recipe.autos),
    )


def _follow(
    recipe: Recipe,
    facts: ModelFacts,
    encoder: EncoderDepth,
    decoder: DecoderDepth,
    text_tokens: int,
    faults: Faults,
) -> tuple[tuple[StagePlan, ...], TokenState]:
    """Follow one image's visual tokens through the stages.

    Returns
    -------
    tuple of StagePlan
        One for each stage.
    TokenState
        The tokens of one run of placeholders that enter the decoder, with what all stages cost.
    """
    layout = facts.layout
    makes_tokens = any(stage.place.makes_tokens for stage in recipe.stages)
    tokens = layout.selectable if makes_tokens else layout.tokens
    state = TokenState(tokens, layout.grids, layout.grids, layout.tokens, facts.decoder, projected=layout.resized)
    entering = state
    keeps = budget_keeps(recipe, facts, decoder, faults)
    plans = []
    for number, entry in enumerate(recipe.stages):
        context = Context(number, facts, encoder, decoder, keeps.get(number), text_tokens, faults)
        step = line(NUMBERS, entry, "NUMBERS of vtc.plan.stages").step(entry, state, context)
        splits = number == recipe.split_at
        tokens_out = step.after.tokens if step.tokens_out is None else step.tokens_out
        plans.append(
            StagePlan(
                entry.kind,
                step.detail + (", split where it reads the question" if splits else ""),
                state.grids,
                step.after.grids,
                layout.spans * state.tokens,
                layout.spans * tokens_out,
                step.layer,
                step.layers,
                step.parameters,
                entry.selects,
                splits,
                step.experts,
                step.visual_experts,
            )
        )
        state = step.after
        if entry.place.makes_tokens:
            entering = state
    return tuple(plans), entering.with_costs_of(state)


def _positions(entering: TokenState, facts: ModelFacts) -> tuple[Positions, int, tuple[Grid, ...]]:
    """The convention, the positions that a run of placeholders takes up, and the grids that they count."""
    if facts.decoder.position_axes > 1:
        grids = entering.position_grids
        return "original", max(max(grid) for grid in grids), grids
    if entering.positions != "original":
        return "renumber", entering.tokens, ()
    return "original", entering.position_tokens, ()


def _flops_parts(
    entering: TokenState,
    facts: ModelFacts,
    encoder_layers: tuple[int, ...],
    lengths: Sequence[int],
    visual: Sequence[int],
) -> dict[str, int]:
    """Operations of a prefill by part of the model.

    Parameters
    ----------
    entering
        What enters the decoder, with what stages cost.
    facts
        The model's sizes.
    encoder_layers
        Encoder layers that run.
    lengths, visual
        Tokens that each decoder layer sees, and the visual ones among them.
    """
    layout, spans = facts.layout, facts.layout.spans
    kinds = [reading.kind for reading in entering.readings]
    resampled = [_resampling_flops(layout, flops.reading_width(facts.encoder, kind)) for kind in kinds]
    own = entering.flops
    projections = _projections(entering, layout, entering.projections) * (
        facts.projector_params - facts.deepstack_params
    )
    deepstack = _projections(entering, layout, None) * facts.deepstack_params
    return {
        "encoder": layout.views * flops.encoder_flops(facts.encoder, layout.view_grid, encoder_layers, kinds)
        + spans * (sum(resampled) + own.get("encoder", 0)),
        "projector": 2 * (projections + deepstack)
        + spans * (own.get("projector", 0) + _resampling_flops(layout, facts.decoder.width)),
        "decoder": flops.decoder_flops(entering.decoder, lengths, visual),
        "selection": spans * own.get("selection", 0),
        "head": flops.head_flops(facts.decoder),
    }


def _mixture_flops(decoder: DecoderFacts, lengths: Sequence[int], visual: Sequence[int], exact: int) -> dict[str, int]:
    """Operations of a prefill by the experts that tokens pass, and by all that they may; nothing without a mixture."""
    if decoder.experts == 1:
        return {}
    every = flops.decoder_flops(replace(decoder, active_experts=decoder.experts), lengths, visual)
    return {"routed": exact, "executed": exact - flops.decoder_flops(decoder, lengths, visual) + every}


def _projections(entering: TokenState, layout: ImageLayout, asked: int | None) -> int:
    """Tokens of an image that pass the projector: all that `asked` for it, or those that enter the decoder."""
    if layout.resized:
        return layout.views * layout.view_grid[0] * layout.view_grid[1]
    if asked is not None:
        return layout.spans * asked
    return layout.spans * (layout.selectable if entering.tokens == layout.tokens else entering.tokens)


def _visual_tokens(layer: int, keep: int, kept_at: Mapping[int, int]) -> int:
    """Visual tokens of a layer that sees them: what the last cut at or before it kept."""
    return next((tokens for cut, tokens in sorted(kept_at.items(), reverse=True) if cut <= layer), keep)


def _segments(depth: DecoderDepth, visual: Sequence[int]) -> tuple[SegmentPlan, ...]:
    def run_of(place: int) -> tuple[bool, int]:
        layer = depth.kept[place]
        sees_image = depth.sees_image(layer)
        return sees_image, sum(cut <= layer for cut in depth.cuts) if sees_image else 0

    segments: list[SegmentPlan] = []
    for (sees_image, _), run in groupby(range(len(depth.kept)), key=run_of):
        places = tuple(run)
        stage = depth.cuts.get(depth.kept[places[0]])
        saw_image = not segments or segments[-1].sees == "all"
        enters: Literal["same", "gather", "merge", "prune"] = "same"
        if stage is not None:
            enters = "prune"
        elif sees_image != saw_image:
            enters = "merge" if sees_image else "gather"
        segments.append(SegmentPlan(places, "all" if sees_image else "text", visual[places[0]], enters, stage))
    return tuple(segments)


def _resampling_flops(layout: ImageLayout, width: int) -> int:
    """Of one span, whose tokens have `width` values."""
    return sum(
        flops.filter_flops(width, block.extent, block.grid)
        for block in layout.blocks
        if block.extent is not None and block.resized
    )

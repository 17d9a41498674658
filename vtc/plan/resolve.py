"""What a recipe comes to for one model: tokens per stage and per decoder layer, segments, FLOPs, KV bytes.

Plain numbers, no tensors, no torch. Everything downstream reads the plan and nothing recomputes it. A recipe
that cannot work on the model is refused here, before any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from vtc.errors import InputError, RecipeError
from vtc.facts.layout import Grid, ImageLayout
from vtc.facts.model import DecoderFacts, EncoderFacts, ModelFacts
from vtc.plan import flops
from vtc.plan.depth import DecoderDepth, Faults, decoder_depth, encoder_depth
from vtc.plan.stages import StagePlan, check_combination, plan_stages
from vtc.recipe import PruneEntry, PruneInDecoderEntry, Recipe
from vtc.recipe.values import Positions

__all__ = [
    "DecoderFacts",
    "EncoderFacts",
    "ModelFacts",
    "SegmentPlan",
    "StagePlan",
    "TokenPlan",
    "check",
    "plan",
]


@dataclass(frozen=True)
class SegmentPlan:
    """A run of decoder layers that see the same tokens.

    Attributes
    ----------
    layers
        Places in `TokenPlan.decoder_layers`, one after the other: 0 is the first layer that runs.
    sees
        ``all`` tokens that there still are, or ``text`` only.
    visual_tokens
        Visual tokens of one image in these layers.
    enters
        How its tokens come of those of the segment before: the ``same``; ``gather``, the text alone; ``merge``, the
        visual tokens that sat out come back; ``prune``, a selector keeps some of the visual ones.
    stage
        Number of the `prune_in_decoder` stage behind ``prune``, else None.
    """

    layers: tuple[int, ...]
    sees: Literal["all", "text"]
    visual_tokens: int
    enters: Literal["same", "gather", "merge", "prune"] = "same"
    stage: int | None = None


@dataclass(frozen=True)
class TokenPlan:
    """A recipe resolved against one model, for one image and a prompt of `text_tokens` tokens.

    Attributes
    ----------
    stages
        One entry for each stage of the recipe.
    visual_tokens_in, keep
        Visual tokens of an image before any stage, and entering the decoder.
    spans
        Runs of placeholders that an image takes, which have equal shares of all counts here.
    positions, position_span
        The position convention, and the positions that a run of placeholders takes up: text behind it goes on after
        that many. The span is what the run keeps when renumbered; with original positions it is the number of tokens
        the first prune chose from, separators included.
    position_grids
        Where positions are time, row and column, which are always the original ones: the grids that they count.
    encoder_layers, decoder_layers
        Layers that run, as the model numbers them.
    decoder_visual_tokens
        Visual tokens in each decoder layer that runs.
    segments
        The decoder's segments, in order.
    layer_average
        Visual tokens averaged over the model's decoder layers, removed ones counting 0: what papers call
        retained tokens.
    text_tokens
        Tokens of the prompt that are not visual.
    flops
        Of a prefill, by the ``exact`` count and the ``fastv`` and ``pyramiddrop`` formulas, see `vtc.plan.flops`.
    flops_parts
        The exact count by ``encoder`` (with what selectors behind it read and multiply), ``projector`` (with frequency
        filters and resampling), ``decoder``, ``selection`` (queries, keys and scores of `prune_in_decoder`, as if all
        text stood behind the image, without what is merged or computed by a trained part there) and ``head``.
    kv_bytes
        Keys and values after prefill.
    provisional
        Key paths of values left to calibration, for which the plan assumes something.
    """

    stages: tuple[StagePlan, ...]
    visual_tokens_in: int
    keep: int
    spans: int
    positions: Positions
    position_span: int
    position_grids: tuple[Grid, ...]
    encoder_layers: tuple[int, ...]
    decoder_layers: tuple[int, ...]
    decoder_visual_tokens: tuple[int, ...]
    segments: tuple[SegmentPlan, ...]
    layer_average: float
    text_tokens: int
    flops: Mapping[str, int]
    flops_parts: Mapping[str, int]
    kv_bytes: int
    provisional: tuple[str, ...]

    def each(self, tokens: int) -> int:
        """Share of each run of placeholders in a count of an image's tokens."""
        return tokens // self.spans

    @property
    def cut_layers(self) -> tuple[int, ...]:
        """Decoder layers, as the model numbers them, before which a selector prunes."""
        return tuple(self.decoder_layers[segment.layers[0]] for segment in self.segments if segment.enters == "prune")

    def around(self, segment: int) -> tuple[int, int]:
        """Decoder layers behind and in front of where segment number `segment` begins, as the model numbers them."""
        behind, before = self.segments[segment].layers[0], self.segments[segment - 1].layers[-1]
        return self.decoder_layers[behind], self.decoder_layers[before]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` makes an equal plan of it."""
        data: dict[str, Any] = _plain(asdict(self))
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenPlan:
        """Make a plan of what `to_dict` gave.

        Raises
        ------
        KeyError, TypeError
            The data is not a plan.
        """
        frozen = {key: _frozen(value) for key, value in data.items()}
        frozen["stages"] = tuple(
            StagePlan(**{key: _frozen(value) for key, value in stage.items()}) for stage in data["stages"]
        )
        frozen["segments"] = tuple(
            SegmentPlan(**{key: _frozen(value) for key, value in segment.items()}) for segment in data["segments"]
        )
        return cls(**frozen)


def check(recipe: Recipe) -> None:
    """Refuse a recipe whose stages cannot work together on any model.

    Raises
    ------
    RecipeError
        With every reason, one a line; `plan` finds these too, and what depends on the model.
    """
    faults = Faults(recipe.origin)
    check_combination(recipe, faults)
    if faults.found:
        raise RecipeError("\n".join(faults.messages()))


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
        The numbers, for one image.

    Raises
    ------
    RecipeError
        With every reason why the recipe cannot work on this model, one a line, each with its place in the
        recipe.
    """
    if text_tokens < 0 or bytes_per_value < 1:
        raise InputError(f"text_tokens ({text_tokens}) and bytes_per_value ({bytes_per_value}) cannot be negative")
    faults = Faults(recipe.origin)
    check_combination(recipe, faults, facts)
    encoder_layers, encoder_dropped = encoder_depth(recipe, facts, faults)
    depth = decoder_depth(recipe, facts, faults)
    stages = plan_stages(recipe, facts, encoder_layers, encoder_dropped, depth, faults)
    if faults.found:
        raise RecipeError("\n".join(faults.messages()))

    layout, spans = facts.layout, facts.layout.spans
    before_decoder = [stage.tokens_out for stage in stages if stage.kind in ("frequency_filter", "prune")]
    keep = before_decoder[-1] if before_decoder else spans * layout.tokens
    prunes = [
        (stage, entry) for stage, entry in zip(stages, recipe.stages, strict=True) if isinstance(entry, PruneEntry)
    ]
    positions, position_span, position_grids = _positions(stages, prunes, facts, keep // spans)
    kept_at = {layer: stages[number].tokens_out for layer, number in depth.cuts.items()}
    visual = tuple(_visual_tokens(layer, keep, kept_at) if depth.sees_image(layer) else 0 for layer in depth.kept)
    lengths = [text_tokens + count for count in visual]
    readings = _readings(prunes, facts)
    projections = _projected(prunes, keep, layout) * (facts.projector_params - facts.deepstack_params)
    deepstack = _projected((), keep, layout) * facts.deepstack_params
    parts = {
        "encoder": layout.views * flops.encoder_flops(facts.encoder, layout.view_grid, encoder_layers, readings)
        + spans * sum(_resampling_flops(layout, flops.reading_width(facts.encoder, kind)) for kind in readings)
        + sum(
            spans
            * flops.product_flops(entry.selector.products(*_each(stage, spans), text_tokens, facts, stage.grids_in))
            for stage, entry in prunes
        ),
        "projector": 2 * (projections + deepstack)
        + spans * (_filter_flops(stages, facts) + _resampling_flops(layout, facts.decoder.width)),
        "decoder": flops.decoder_flops(facts.decoder, lengths),
        "selection": sum(
            _selection_flops(entry, stage.tokens_in, spans, text_tokens, facts.decoder)
            for stage, entry in zip(stages, recipe.stages, strict=True)
            if isinstance(entry, PruneInDecoderEntry)
        ),
        "head": flops.head_flops(facts.decoder),
    }
    return TokenPlan(
        stages=stages,
        visual_tokens_in=spans * layout.tokens,
        keep=keep,
        spans=spans,
        positions=positions,
        position_span=position_span,
        position_grids=position_grids,
        encoder_layers=encoder_layers,
        decoder_layers=depth.kept,
        decoder_visual_tokens=visual,
        segments=_segments(depth, visual),
        layer_average=sum(visual) / facts.decoder.layers,
        text_tokens=text_tokens,
        flops={
            "exact": sum(parts.values()),
            "fastv": flops.fastv_flops(facts.decoder, lengths),
            "pyramiddrop": flops.pyramiddrop_flops(facts.decoder, lengths),
        },
        flops_parts=parts,
        kv_bytes=flops.kv_bytes(facts.decoder, lengths, bytes_per_value),
        provisional=tuple(recipe.autos),
    )


def _positions(
    stages: Sequence[StagePlan], prunes: Sequence[tuple[StagePlan, PruneEntry]], facts: ModelFacts, keep: int
) -> tuple[Positions, int, tuple[Grid, ...]]:
    """The convention, the positions that a run of placeholders takes up, and the grids that they count."""
    filtered = [stage for stage in stages if stage.kind == "frequency_filter"]
    if facts.decoder.position_axes > 1:
        grids = filtered[-1].grids_out if filtered else facts.layout.grids
        return "original", max(max(grid) for grid in grids), grids
    if not prunes or prunes[0][1].positions == "renumber":
        return "renumber", keep, ()
    return "original", _each(prunes[0][0], facts.layout.spans)[0] if filtered else facts.layout.tokens, ()


def _each(stage: StagePlan, spans: int) -> tuple[int, int]:
    """Tokens of one run of placeholders before and after a stage."""
    return stage.tokens_in // spans, stage.tokens_out // spans


def _selection_flops(entry: PruneInDecoderEntry, tokens: int, spans: int, text: int, decoder: DecoderFacts) -> int:
    return spans * flops.text_attention_flops(decoder, entry.selector.rows(text, tokens // spans), text + tokens)


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


def _readings(prunes: Sequence[tuple[StagePlan, PruneEntry]], facts: ModelFacts) -> list[str]:
    """Kinds of what selectors read, one entry a layer; two selectors share a reading."""
    found = {(kind, layer) for stage, entry in prunes for kind in entry.selector.reads for layer in stage.layers}
    instead = {} if facts.encoder.has_cls else {"cls_attention": "received_attention"}
    return [instead.get(kind, kind) for kind, _ in found]


def _projected(prunes: Sequence[tuple[StagePlan, PruneEntry]], keep: int, layout: ImageLayout) -> int:
    """Tokens that pass the projector: all that the first selector sees which looks at the decoder's space."""
    if layout.resized:
        return layout.views * layout.view_grid[0] * layout.view_grid[1]
    if keep == layout.spans * layout.tokens:
        return layout.spans * layout.selectable
    return max((stage.tokens_in for stage, entry in prunes if entry.selector.projects), default=keep)


def _filter_flops(stages: Sequence[StagePlan], facts: ModelFacts) -> int:
    width = facts.token_width * (1 + facts.decoder.deepstack)
    return sum(
        flops.filter_flops(width, before, after)
        for stage in stages
        if stage.kind == "frequency_filter"
        for before, after in zip(stage.grids_in, stage.grids_out, strict=True)
    )


def _resampling_flops(layout: ImageLayout, width: int) -> int:
    """Of one span, whose tokens have `width` values."""
    return sum(
        flops.filter_flops(width, block.extent, block.grid)
        for block in layout.blocks
        if block.extent is not None and block.resized
    )


def _plain(value: Any) -> Any:
    """Turn tuples into lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value

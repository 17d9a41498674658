"""A recipe resolved against one model: plain numbers that everything downstream reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from vtc.facts.layout import Grid
from vtc.facts.model import DecoderFacts
from vtc.recipe.values import Positions

FLOPS = ("exact", "fastv", "pyramiddrop")
"""Ways in which the operations of a prefill are counted."""

FLOPS_PARTS = ("encoder", "projector", "decoder", "selection", "head")
"""Parts of the exact count."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of a recipe in numbers.

    Attributes
    ----------
    kind, detail
        The stage's kind, and what it does here in words.
    grids_in, grids_out
        (H, W) of the visual tokens of each run of placeholders, grid by grid; none once a selector has left no grid.
    tokens_in, tokens_out
        Visual tokens of one image, before and after the stage; for stages of the decoder those that enter it,
        and 0 after an exit.
    layer
        The decoder layer of a `prune_in_decoder` or a `visual_exit`, else None.
    layers
        Layers that the stage is about, as the model numbers them: those dropped, ascending, or the encoder
        layers that a selector reads.
    parameters
        Parameters that the stage adds to the model.
    selects
        Whether a selector keeps some of the tokens, each at its place.
    splits
        Whether the vision graph is split in two before what of the stage reads the question.
    experts
        Experts of a decoder layer that the stage leaves; None where it leaves them alone.
    visual_experts
        Experts that it leaves visual tokens to choose among; None likewise.
    """

    kind: str
    detail: str
    grids_in: tuple[Grid, ...]
    grids_out: tuple[Grid, ...]
    tokens_in: int
    tokens_out: int
    layer: int | None = None
    layers: tuple[int, ...] = ()
    parameters: int = 0
    selects: bool = False
    splits: bool = False
    experts: int | None = None
    visual_experts: int | None = None


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
        Number of the stage that prunes there, else None.
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
    has_places
        Whether the tokens that enter the decoder are some of the original ones, each with its place in the image.
        Tokens that were pooled, resampled or filtered are not.
    spans
        Runs of placeholders that an image takes, which have equal shares of all counts here.
    positions, position_span
        The position convention, and the positions that a run of placeholders takes up: the text after it goes on
        after that many. The span is what the run keeps when renumbered; with original positions it is the
        number of tokens the first prune chose from, separators included.
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
        Of a prefill, by the ``exact`` count and the ``fastv`` and ``pyramiddrop`` formulas, see `vtc.plan.flops`. Of a
        mixture of experts the exact count is of the experts that tokens pass, ``routed``; ``executed`` is of all that
        they may choose, as portable graphs and engines compute.
    flops_parts
        The exact count by ``encoder`` (with what selectors after it read and multiply), ``projector`` (with frequency
        filters and resampling), ``decoder``, ``selection`` (queries, keys and scores of `prune_in_decoder`, as if all
        text stood after the image, without what is merged or computed by a trained part there) and ``head``.
    kv_bytes
        Keys and values after prefill.
    provisional
        Key paths of values left to calibration, for which the plan assumes something.
    smaller
        Where the recipe has several budgets, of which this is the largest: the plans at the others, ascending.
    """

    stages: tuple[StagePlan, ...]
    visual_tokens_in: int
    keep: int
    has_places: bool
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
    smaller: tuple[TokenPlan, ...] = ()

    def per_span(self, tokens: int) -> int:
        """Share of each run of placeholders in a count of an image's tokens."""
        return tokens // self.spans

    @property
    def keep_per_span(self) -> int:
        """Visual tokens of each run of placeholders that enter the decoder."""
        return self.per_span(self.keep)

    @property
    def executed(self) -> int:
        """Operations of a prefill in standard operators, which compute every expert that tokens may choose."""
        return self.flops.get("executed", self.flops["exact"])

    @property
    def chooses_places(self) -> bool:
        """Whether some of an image's tokens are kept at their places and others are not."""
        return self.has_places and (self.keep < self.visual_tokens_in or bool(self.cut_layers))

    @property
    def chooses_tokens(self) -> bool:
        """Whether a selector chooses among tokens, before the decoder or inside it."""
        return any(stage.selects for stage in self.stages)

    @property
    def split_at(self) -> int | None:
        """Number of the stage at which the vision graph is split in two; None where it is not."""
        return next((number for number, stage in enumerate(self.stages) if stage.splits), None)

    @property
    def experts(self) -> int | None:
        """Experts of a decoder layer that are left; None where stages leave them alone."""
        return next((stage.experts for stage in reversed(self.stages) if stage.experts is not None), None)

    def decoder(self, sizes: DecoderFacts) -> DecoderFacts:
        """Sizes of the decoder that `sizes` become: with the experts that are left, and those of visual tokens."""
        left = sizes if self.experts is None else sizes.with_experts(self.experts)
        own = next((stage.visual_experts for stage in self.stages if stage.visual_experts is not None), 0)
        return replace(left, visual_experts=own)

    @property
    def cut_layers(self) -> tuple[int, ...]:
        """Decoder layers, as the model numbers them, before which a selector prunes."""
        return tuple(self.decoder_layers[segment.layers[0]] for segment in self.segments if segment.enters == "prune")

    def around(self, segment: int) -> tuple[int, int]:
        """Decoder layers after and before the place where a segment begins, as the model numbers them."""
        after, before = self.segments[segment].layers[0], self.segments[segment - 1].layers[-1]
        return self.decoder_layers[after], self.decoder_layers[before]

    def segment_of(self, stage: int) -> int:
        """Number of the segment that stage number `stage` prunes before."""
        return next(number for number, segment in enumerate(self.segments) if segment.stage == stage)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` makes an equal plan of it."""
        data: dict[str, Any] = _plain(asdict(self))
        del data["smaller"]
        return data | ({"smaller": [one.to_dict() for one in self.smaller]} if self.smaller else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenPlan:
        """Make a plan of what `to_dict` gave.

        Raises
        ------
        ValueError
            The data is not a plan.
        """
        plan = TypeAdapter(cls).validate_json(json.dumps(data), strict=True)
        plan._check()
        return plan

    def _check(self) -> None:
        numbers = [self.visual_tokens_in, self.keep, self.position_span, self.layer_average]
        numbers += [self.text_tokens, self.kv_bytes, *self.flops.values(), *self.flops_parts.values()]
        layers = [layer for segment in self.segments for layer in segment.layers]
        if not set(FLOPS) <= set(self.flops) or not set(FLOPS_PARTS) <= set(self.flops_parts):
            raise ValueError("a count is missing")
        if min(numbers) < 0 or self.spans < 1 or not all(segment.layers for segment in self.segments):
            raise ValueError("numbers of no plan")
        if layers != list(range(len(self.decoder_layers))) or len(layers) != len(self.decoder_visual_tokens):
            raise ValueError("segments that do not make up the decoder")
        for one in self.smaller:
            one._check()


def _plain(value: Any) -> Any:
    """Turn tuples into lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

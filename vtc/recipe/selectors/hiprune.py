"""HiPrune in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from vtc.facts.model import ModelFacts
from vtc.recipe.layers import encoder_layer_at
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import EncoderSelectorEntry
from vtc.recipe.values import LayerOrDepth


class HiPruneEntry(EncoderSelectorEntry):
    """The most attended tokens of a middle layer (anchors), their neighbours, and those of the last layer (registers).

    Based on HiPrune (arXiv 2508.00553).
    """

    summary = "attention received in a middle layer with neighbours, then in the last layer"
    paper = "HiPrune (arXiv 2508.00553)"
    reads = "attention received in two encoder layers"
    reads_encoder_grid = True
    name: Literal["hiprune"] = "hiprune"
    alpha: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    """Share of the budget that anchors and their neighbours take."""
    object_layer: LayerOrDepth = 0.375
    """The middle encoder layer: its number, negative from the end, or a share of the depth."""
    as_published: bool = False
    """Whether it computes as the authors' code does: neighbours wrap over row ends."""

    @property
    def layers_named(self) -> tuple[int, ...]:
        return (self.object_layer,) if isinstance(self.object_layer, int) else ()

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        return {
            "object": Reading("received_attention", encoder_layer_at(self.object_layer, facts.encoder, running)),
            "deep": Reading("received_attention", running[-1]),
        }

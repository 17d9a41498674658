"""VScan in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from vtc.facts.model import ModelFacts
from vtc.recipe.layers import encoder_layer_at
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product
from vtc.recipe.values import LayerOrDepth


class VScanEntry(EncoderSelectorEntry):
    """Most attended tokens of every window in a shallow layer, and of the whole image in the last; others merge in.

    Tokens that have lost their grid are one window.

    Based on VScan (arXiv 2505.22654), its stage before the decoder.
    """

    merges = True
    summary = "highest CLS attention by window and overall; the others merge into the nearest"
    paper = "VScan (arXiv 2505.22654)"
    reads = "the CLS rows of two encoder layers, projected tokens"
    reads_encoder_grid = True
    projects = True
    needs_cls = True
    name: Literal["vscan"] = "vscan"
    local_layer: LayerOrDepth = 0.25
    """The shallow encoder layer: its number, negative from the end, or a share of the depth."""
    windows: Annotated[int, Field(ge=1, le=16)] = 4
    """Windows along each side of each grid."""

    @property
    def layers_named(self) -> tuple[int, ...]:
        return (self.local_layer,) if isinstance(self.local_layer, int) else ()

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        return {
            "local": Reading("cls_attention", encoder_layer_at(self.local_layer, facts.encoder, running)),
            "overall": Reading("cls_attention", running[-1]),
        }

    def products(self, choice: Choice) -> Iterable[Product]:
        width = choice.facts.decoder.width
        return (choice.tokens, width, choice.keep), (choice.keep, choice.tokens, width)

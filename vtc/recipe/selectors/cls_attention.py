"""ClsAttention in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vtc.facts.model import ModelFacts
from vtc.recipe.layers import listed_layers
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import EncoderSelectorEntry, Fault, listing
from vtc.recipe.values import AttentionLayers


class ClsAttentionEntry(EncoderSelectorEntry):
    """The tokens that the encoder's CLS token attends to most.

    Based on FasterVLM (arXiv 2412.01818) and, for several layers, VTC-CLS (arXiv 2412.05819).
    """

    summary = "highest CLS attention; a list of layers is averaged"
    paper = "FasterVLM (arXiv 2412.01818); several layers: VTC-CLS (arXiv 2412.05819)"
    reads = "the CLS row of the encoder's attention"
    reads_encoder_grid = True
    needs_cls = True
    name: Literal["cls_attention"] = "cls_attention"
    layers: AttentionLayers = "feature"
    """Encoder layers in which the attention is read: ``feature`` is the layer whose output feeds the projector; a
    number, or a list to average over; negative ones count from the end; ``auto`` is calibrated."""
    last: Annotated[int, Field(ge=1)] = 1
    """With ``layers: feature``, so many layers up to and including that one are averaged."""

    @model_validator(mode="after")
    def _last_goes_with_feature(self) -> ClsAttentionEntry:
        if self.last > 1 and self.layers != "feature":
            raise ValueError("last is only for layers: feature, a list already says which layers to average")
        return self

    @property
    def layers_named(self) -> tuple[int, ...]:
        return () if isinstance(self.layers, str) else self.layers

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        if isinstance(self.layers, str):
            layers = tuple(running[-self.last :])
        else:
            layers = listed_layers(self.layers, facts.encoder.layers, "encoder", lambda _: None)
        return {str(layer): Reading("cls_attention", layer) for layer in layers}

    def check(self, facts: ModelFacts, running: Sequence[int], fault: Fault) -> None:
        if isinstance(self.layers, str):
            if self.last > len(running):
                fault("last", f"{self.last} layers, but only {len(running)} run")
            return
        encoder = facts.encoder
        for layer in listed_layers(self.layers, encoder.layers, "encoder", lambda problem: fault("layers", problem)):
            if layer > encoder.feature_layer:
                fault("layers", f"encoder layer {layer} is not computed; layers up to {encoder.feature_layer} are")
            elif layer not in running:
                fault("layers", f"encoder layer {layer} is dropped by this recipe")

    def described(self, layers: Sequence[int]) -> str:
        return f"cls_attention of encoder {listing(layers)}"

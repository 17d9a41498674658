"""`drop_layers` in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vtc.recipe.stages.base import LayerRemoval, Place, StageEntry
from vtc.recipe.values import LayersOrAuto


class DropLayersEntry(StageEntry):
    """Remove whole layers of the decoder or the encoder, or only their work on visual tokens.

    With ``visual_only`` visual tokens skip the layers altogether: they are neither computed nor attended there, and
    come back in the next layer.

    Layers of the encoder (``component: encoder``) are dropped before anything else, so that stage comes first.

    Based on ShortGPT (arXiv 2403.03853) for whole layers, YOPO (arXiv 2410.06169) for visual tokens only.
    """

    summary = "remove layers, or only their work on visual tokens"
    acts = Place.DECODER
    guides: ClassVar[Mapping[str, str]] = {"layers": "count"}
    kind: Literal["drop_layers"] = "drop_layers"
    component: Literal["decoder", "encoder"] = "decoder"
    """Whose layers are removed."""
    layers: LayersOrAuto
    """Numbers of the layers, from 0, negative ones from the end; ``auto`` leaves the choice to calibration."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Number of layers that calibration is to choose; goes with ``layers: auto`` and is required there."""
    visual_only: bool = False
    """Whether text still passes the layers, and only visual tokens skip them; for the decoder alone."""

    @model_validator(mode="after")
    def _consistent(self) -> DropLayersEntry:
        if self.layers == "auto" and self.count is None:
            raise ValueError("layers: auto needs count, the number of layers to drop")
        if self.layers != "auto" and self.count is not None:
            raise ValueError("count is only for layers: auto, the list already says how many")
        if self.visual_only and self.component == "encoder":
            raise ValueError("visual_only is only for the decoder, the encoder sees nothing but visual tokens")
        return self

    @property
    def place(self) -> Place:
        return Place.ENCODER if self.component == "encoder" else self.acts

    @property
    def deed(self) -> str:
        return f"dropping {self.component} layers"

    @property
    def removal(self) -> LayerRemoval:
        return LayerRemoval(self.component, self.layers, self.count, self.visual_only)

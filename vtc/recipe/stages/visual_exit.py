"""`visual_exit` in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from vtc.recipe.stages.base import Place, StageEntry
from vtc.recipe.values import LayerDepthOrAuto


class VisualExitEntry(StageEntry):
    """All visual tokens leave before decoder layer ``layer`` (0-based); the text keeps its positions.

    Based on Visual Tokens Withdrawal (arXiv 2405.05803), ToDRE (arXiv 2505.18757, stage 2) for a given depth and DyVTE
    (arXiv 2411.19628), whose training labels give the second criterion. DyVTE's gates decide for each prompt; here all
    prompts share a layer, so that the graph has one shape.
    """

    summary = "all visual tokens leave before a decoder layer"
    acts = Place.DECODER
    guides: ClassVar[Mapping[str, str]] = {"layer": "criterion"}
    kind: Literal["visual_exit"] = "visual_exit"
    layer: LayerDepthOrAuto
    """The first decoder layer that sees text alone: its number from 0, negative from the end, or a share of the
    decoder's depth. ``auto`` is the earliest one at which ``criterion`` holds on calibration data."""
    criterion: Literal["agreement", "dyvte"] = "agreement"
    """What calibration asks of a layer: by ``agreement``, the most likely tokens still agree with the original's; by
    ``dyvte``, moreover, the answers' loss grows by less than 3 %. Goes with ``layer: auto``."""

    @model_validator(mode="after")
    def _criterion_goes_with_auto(self) -> VisualExitEntry:
        if self.layer != "auto" and self.criterion != "agreement":
            raise ValueError(f"criterion is only for layer: auto, here layer is {self.layer}")
        return self

    @property
    def exit_before(self) -> int | float | Literal["auto"]:
        return self.layer

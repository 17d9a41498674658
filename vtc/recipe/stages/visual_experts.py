"""`visual_experts` in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from vtc.recipe.stages.base import Place, StageEntry
from vtc.recipe.values import Experts, KeptExpertsOrAuto

VisualScore = Literal["reap", "frequency", "weighted_frequency", "ean_sum", "ean_mean", "random"]


class VisualExpertsEntry(StageEntry):
    """Let visual tokens choose among a few experts of each decoder layer, and text tokens among all.

    The router's weights for a visual token are of those few. Graphs compute visual tokens by them alone, also where
    they compute every expert. Experts that no token is to have are dropped by ``prune_experts`` before this stage,
    which is the last that changes experts.
    """

    summary = "visual tokens choose among few experts of a mixture"
    acts = Place.WEIGHTS
    needs_experts = True
    guides: ClassVar[Mapping[str, str]] = {"experts": "keep"}
    kind: Literal["visual_experts"] = "visual_experts"
    keep: Experts | None = None
    """Experts of a layer that visual tokens choose among: a number, or a share; goes with ``experts: auto`` and is
    required there."""
    score: VisualScore = "frequency"
    """What an expert is chosen for, by visual tokens alone: as for ``prune_experts``."""
    seed: int = 0
    """Draws the experts of ``score: random``."""
    experts: KeptExpertsOrAuto = "auto"
    """For each decoder layer, those experts among the ones that are left; ``auto`` leaves the choice to calibration."""

    @model_validator(mode="after")
    def _consistent(self) -> VisualExpertsEntry:
        if self.experts == "auto" and self.keep is None:
            raise ValueError("experts: auto needs keep, the number of experts that visual tokens choose among")
        if self.experts != "auto" and self.keep is not None:
            raise ValueError("keep is only for experts: auto, the lists already say how many")
        return self

    @property
    def deed(self) -> str:
        return "giving visual tokens experts of their own"

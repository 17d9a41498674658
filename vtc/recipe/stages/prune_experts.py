"""`prune_experts` in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from vtc.recipe.stages.base import Place, StageEntry
from vtc.recipe.values import Experts, KeptExpertsOrAuto

Score = Literal["reap", "frequency", "weighted_frequency", "ean_sum", "ean_mean", "naee", "random"]
Modality = Literal["aware", "both", "text", "visual"]
MOST_SETS = 20_000
"""Sets of experts that ``naee`` tries, at most."""


class PruneExpertsEntry(StageEntry):
    """Drop experts of a mixture, equally many in each decoder layer.

    The routers choose among those that are left, and their weights are of those. What is dropped is neither stored nor
    computed.

    Based on REAP (arXiv 2510.13999), NAEE (arXiv 2402.14800).
    """

    summary = "drop experts of a mixture that are needed least"
    acts = Place.WEIGHTS
    needs_experts = True
    guides: ClassVar[Mapping[str, str]] = {"experts": "keep"}
    kind: Literal["prune_experts"] = "prune_experts"
    keep: Experts | None = None
    """Experts of a layer that stay: a number, or a share; goes with ``experts: auto`` and is required there."""
    score: Score = "reap"
    """What an expert is kept for. ``reap``: mean, over the tokens that chose it, of the norm of its output times the
    router's weight. ``frequency``, ``weighted_frequency``: tokens that chose it, and the sum of their weights.
    ``ean_sum``, ``ean_mean``: sum and mean of the norm of its output. ``naee``: the set of experts without which the
    layer's output changes least, found by trying every set. ``random``: nothing."""
    modality: Modality = "both"
    """Whose tokens count. ``both``: all tokens alike, most of which are visual. ``aware``: an expert is kept if either
    modality needs it; where experts are specialised, ``frequency`` then chooses far better than ``reap``."""
    seed: int = 0
    """Draws the experts of ``score: random``."""
    experts: KeptExpertsOrAuto = "auto"
    """For each decoder layer, the experts that stay; ``auto`` leaves the choice to calibration."""

    @model_validator(mode="after")
    def _consistent(self) -> PruneExpertsEntry:
        if self.experts == "auto" and self.keep is None:
            raise ValueError("experts: auto needs keep, the number of experts of a layer that stay")
        if self.experts != "auto" and self.keep is not None:
            raise ValueError("keep is only for experts: auto, the lists already say how many")
        return self

    @property
    def deed(self) -> str:
        return "dropping experts"

"""How values that a recipe leaves ``auto`` are chosen: class of a stage's entry to the function that chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtc.calibrate import (
    drop_layers,
    frequency_filter,
    merge_experts,
    prune,
    prune_experts,
    visual_exit,
    visual_experts,
)
from vtc.calibrate.measuring import Measuring
from vtc.recipe import Recipe
from vtc.recipe.stages import (
    DropLayersEntry,
    FrequencyFilterEntry,
    MergeExpertsEntry,
    PruneEntry,
    PruneExpertsEntry,
    StageEntry,
    VisualExitEntry,
    VisualExpertsEntry,
)

CHOICES: dict[type[StageEntry], Callable[[Any, Recipe, Measuring], Any]] = {
    FrequencyFilterEntry: frequency_filter.choose,
    PruneEntry: prune.choose,
    VisualExitEntry: visual_exit.choose,
    DropLayersEntry: drop_layers.choose,
    PruneExpertsEntry: prune_experts.choose,
    MergeExpertsEntry: merge_experts.choose,
    VisualExpertsEntry: visual_experts.choose,
}
"""Given the entry, the stages before it and what can be measured: the value in place of ``auto``."""

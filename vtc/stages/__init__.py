"""What a recipe does to a model, as modules: one file a kind of stage, and the table of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vtc.recipe.stages import (
    DropLayersEntry,
    FrequencyFilterEntry,
    MergeExpertsEntry,
    ProjectEntry,
    PruneEntry,
    PruneExpertsEntry,
    PruneInDecoderEntry,
    StageEntry,
    VisualExitEntry,
    VisualExpertsEntry,
)
from vtc.stages import fewer_experts, frequency_filter, project, prune, prune_in_decoder
from vtc.stages.base import BuildContext


def planned(entry: StageEntry, context: BuildContext) -> None:
    """Build nothing: the plan says which layers run and what they see, and the model follows it."""


MODULES: dict[type[StageEntry], Callable[[Any, BuildContext], nn.Module | None]] = {
    FrequencyFilterEntry: frequency_filter.build,
    PruneEntry: prune.build,
    ProjectEntry: project.build,
    PruneInDecoderEntry: prune_in_decoder.build,
    VisualExitEntry: planned,
    DropLayersEntry: planned,
    PruneExpertsEntry: fewer_experts.prune,
    MergeExpertsEntry: fewer_experts.merge,
    VisualExpertsEntry: fewer_experts.split,
}
"""Class of a recipe's entry, to the function that makes the module of its stage."""

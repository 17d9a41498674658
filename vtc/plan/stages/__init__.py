"""What each kind of stage comes to in numbers: one file a kind, and the table of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vtc.plan.stages import drop_layers, experts, frequency_filter, project, prune, prune_in_decoder, visual_exit
from vtc.plan.state import Context, Rules, Step, TokenState
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


def anywhere(entry: StageEntry, rules: Rules) -> None:
    """Accept any stages before this one."""


class Numbers(NamedTuple):
    """A kind in numbers.

    Attributes
    ----------
    step
        Given an entry, the tokens that come to the stage and where it acts: what it does.
    check
        Given an entry and the stages before it: reports what cannot work on any model.
    """

    step: Callable[[Any, TokenState, Context], Step]
    check: Callable[[Any, Rules], None] = anywhere


NUMBERS: dict[type[StageEntry], Numbers] = {
    FrequencyFilterEntry: Numbers(frequency_filter.step, frequency_filter.check),
    PruneEntry: Numbers(prune.step, prune.check),
    ProjectEntry: Numbers(project.step, project.check),
    PruneInDecoderEntry: Numbers(prune_in_decoder.step),
    VisualExitEntry: Numbers(visual_exit.step, visual_exit.check),
    DropLayersEntry: Numbers(drop_layers.step),
    PruneExpertsEntry: Numbers(experts.prune, experts.check_prune),
    MergeExpertsEntry: Numbers(experts.merge, experts.check_last),
    VisualExpertsEntry: Numbers(experts.visual, experts.check_visual),
}

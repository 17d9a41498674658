"""Fewer experts in each layer of a mixture: some dropped, groups of them merged, or fewer for visual tokens alone."""

from __future__ import annotations

from vtc.models.base import VLMAdapter
from vtc.models.fewer_experts import keep_experts, merge_experts, split_experts
from vtc.recipe.stages import MergeExpertsEntry, PruneExpertsEntry, VisualExpertsEntry
from vtc.stages.base import BuildContext, WeightStage


class FewerExperts(WeightStage):
    """The decoder, with fewer experts than it came with, or fewer that visual tokens choose among.

    Parameters
    ----------
    adapter : VLMAdapter
        With them.
    """

    def __init__(self, adapter: VLMAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def changed(self, adapter: VLMAdapter) -> VLMAdapter:
        return self.adapter


def prune(entry: PruneExpertsEntry, context: BuildContext) -> FewerExperts:
    """Drop what the recipe does not list."""
    assert entry.experts != "auto", "left to calibration"
    return FewerExperts(keep_experts(context.adapter, entry.experts))


def merge(entry: MergeExpertsEntry, context: BuildContext) -> FewerExperts:
    """Merge the groups that the recipe lists."""
    assert entry.groups != "auto", "left to calibration"
    return FewerExperts(merge_experts(context.adapter, entry.groups))


def split(entry: VisualExpertsEntry, context: BuildContext) -> FewerExperts:
    """Let visual tokens choose among the experts that the recipe lists."""
    assert entry.experts != "auto", "left to calibration"
    return FewerExperts(split_experts(context.adapter, entry.experts))

"""Fewer experts in each layer of a mixture: some dropped, or groups of them merged."""

from __future__ import annotations

from vtc.models.base import VLMAdapter
from vtc.models.fewer_experts import keep_experts, merge_experts
from vtc.recipe.stages import MergeExpertsEntry, PruneExpertsEntry
from vtc.stages.base import BuildContext, WeightStage


class FewerExperts(WeightStage):
    """The decoder, with fewer experts than it came with.

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

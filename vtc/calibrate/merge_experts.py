"""`merge_experts` with ``groups: auto``: experts whose mean outputs are near each other, shared by use."""

from __future__ import annotations

from vtc.calibrate.expert_outputs import layer_outputs
from vtc.calibrate.measuring import Measuring
from vtc.experts.merging import cluster_experts, cluster_shares
from vtc.recipe import Recipe
from vtc.recipe.stages import MergeExpertsEntry
from vtc.recipe.values import experts_left


def choose(entry: MergeExpertsEntry, before: Recipe, measuring: Measuring) -> list[list[list[tuple[int, float]]]]:
    """For each decoder layer, ``keep`` groups of experts with their shares."""
    use = measuring.experts(before)
    count = experts_left(entry.keep or use.experts, use.experts)
    groups = []
    for layer, chosen in zip(
        layer_outputs(measuring.model(before), measuring.samples, measuring.report), use.chosen.sum(axis=1), strict=True
    ):
        labels = cluster_experts(layer.outputs.mean(axis=1), count, entry.linkage)
        shares = cluster_shares(labels, chosen)
        own = [
            [(int(expert), round(float(row[expert]), 6)) for expert in (labels == label).nonzero()[0]]
            for label, row in enumerate(shares)
        ]
        groups.append(own)
    return groups

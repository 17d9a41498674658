"""`merge_experts` with ``groups: auto``: experts whose mean outputs are near each other, shared by use."""

from __future__ import annotations

from vtc.calibrate.expert_outputs import layer_outputs
from vtc.calibrate.measuring import Measuring
from vtc.calibrate.prune_experts import kept
from vtc.experts.merging import cluster_experts
from vtc.recipe import Recipe
from vtc.recipe.stages import MergeExpertsEntry


def choose(entry: MergeExpertsEntry, before: Recipe, measuring: Measuring) -> list[list[list[tuple[int, float]]]]:
    """For each decoder layer, ``keep`` groups of experts with their shares."""
    use = measuring.experts(before)
    count = kept(entry.keep, use.experts)
    groups = []
    for number, layer in enumerate(layer_outputs(measuring.model(before), measuring.samples, measuring.report)):
        labels = cluster_experts(layer.outputs.mean(axis=1), count, entry.linkage)
        chosen = use.chosen[number].sum(axis=0)
        own = []
        for label in range(count):
            members = (labels == label).nonzero()[0]
            total = chosen[members].sum()
            shares = chosen[members] / total if total else [1 / len(members)] * len(members)
            own.append([(int(expert), round(float(share), 6)) for expert, share in zip(members, shares, strict=True)])
        groups.append(own)
    return groups

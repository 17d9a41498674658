"""`prune_experts` with ``experts: auto``: the experts of each layer that are needed most."""

from __future__ import annotations

import numpy as np

from vtc.calibrate.expert_outputs import LayerOutputs, layer_outputs
from vtc.calibrate.measuring import Measuring
from vtc.experts.enumeration import enumerate_drops, layer_output
from vtc.experts.importance import expert_scores, keep_sets, modality_aware
from vtc.experts.statistics import Floats, Numbers
from vtc.recipe import Recipe
from vtc.recipe.stages import PruneExpertsEntry


def choose(entry: PruneExpertsEntry, before: Recipe, measuring: Measuring) -> list[list[int]]:
    """For each decoder layer, ``keep`` experts, ascending."""
    model = measuring.model(before)
    decoder = model.adapter.facts.decoder
    keep = kept(entry.keep, decoder.experts)
    if entry.score == "naee":
        layers = layer_outputs(model, measuring.samples, measuring.report)
        return [_best_set(layer, keep, decoder.active_experts) for layer in layers]
    sets: list[list[int]] = keep_sets(_scores(entry, before, measuring), keep).tolist()
    return sets


def kept(keep: int | float | None, experts: int) -> int:
    """Number of experts of a layer that a recipe leaves."""
    return max(1, round(keep * experts)) if isinstance(keep, float) else int(keep or experts)


def _scores(entry: PruneExpertsEntry, before: Recipe, measuring: Measuring) -> Floats:
    use = measuring.experts(before)
    if entry.score == "random":
        return np.random.default_rng(entry.seed).random((use.layers, use.experts))
    if entry.score == "naee":
        raise AssertionError("has no scores")
    if entry.modality == "aware":
        return modality_aware(use, entry.score)
    return expert_scores(use, entry.score, entry.modality)


def _best_set(layer: LayerOutputs, keep: int, active: int) -> list[int]:
    """The set without whose complement the layer's output changes least."""
    experts = len(layer.outputs)
    if keep == experts:
        return list(range(experts))

    def reduced(dropped: Numbers) -> Floats:
        return layer_output(layer.outputs, layer.logits, active, dropped)[None]

    whole = layer_output(layer.outputs, layer.logits, active)[None]
    dropped = enumerate_drops(reduced, whole, experts, experts - keep).best
    return sorted(set(range(experts)) - set(dropped.tolist()))

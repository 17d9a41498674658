"""`prune_experts` with ``experts: auto``: the experts of each layer that are needed most."""

from __future__ import annotations

import numpy as np

from vtc.calibrate.expert_outputs import LayerOutputs, layer_outputs
from vtc.calibrate.measuring import Measuring
from vtc.errors import InputError
from vtc.experts.enumeration import enumerate_drops, layer_output
from vtc.experts.importance import expert_scores, keep_sets, modality_aware
from vtc.experts.statistics import Floats, Numbers
from vtc.facts.model import DecoderFacts
from vtc.recipe import Recipe
from vtc.recipe.stages import PruneExpertsEntry
from vtc.recipe.values import experts_left


def choose(entry: PruneExpertsEntry, before: Recipe, measuring: Measuring) -> list[list[int]]:
    """For each decoder layer, ``keep`` experts, ascending."""
    model = measuring.model(before)
    decoder = model.adapter.facts.decoder
    keep = experts_left(entry.keep or decoder.experts, decoder.experts)
    if entry.score == "naee":
        layers = layer_outputs(model, measuring.samples, measuring.report)
        return [_best_set(number, layer, keep, decoder.active_experts) for number, layer in enumerate(layers)]
    if entry.score == "random":
        scores = random_scores(decoder, entry.seed)
    elif entry.modality == "aware":
        scores = modality_aware(measuring.experts(before), entry.score)
    else:
        scores = expert_scores(measuring.experts(before), entry.score, entry.modality)
    sets: list[list[int]] = keep_sets(scores, keep).tolist()
    return sets


def random_scores(decoder: DecoderFacts, seed: int) -> Floats:
    """Scores (L, E) that say nothing of the experts."""
    return np.random.default_rng(seed).random((decoder.layers, decoder.experts))


def _best_set(number: int, layer: LayerOutputs, keep: int, active: int) -> list[int]:
    """The set without whose complement the layer's output changes least."""
    experts = len(layer.outputs)
    if keep == experts:
        return list(range(experts))
    sum_to_one = _sum_to_one(number, layer, active)

    def reduced(dropped: Numbers) -> Floats:
        return layer_output(layer.outputs, layer.logits, active, dropped, sum_to_one=sum_to_one)[None]

    whole = layer_output(layer.outputs, layer.logits, active, sum_to_one=sum_to_one)[None]
    dropped = enumerate_drops(reduced, whole, experts, experts - keep).best
    return sorted(set(range(experts)) - set(dropped.tolist()))


def _sum_to_one(number: int, layer: LayerOutputs, active: int) -> bool:
    """Whether the router's weights of the chosen experts sum to 1, or are their shares of all experts."""
    share = np.exp(layer.logits - layer.logits.max(axis=1, keepdims=True))
    highest = -np.sort(-share, axis=1)[:, :active]
    for among, found in ((highest, True), (share, False)):
        if np.allclose(highest[:, 0] / among.sum(axis=1), layer.largest, atol=1e-2):
            return found
    raise InputError(
        f"layer {number}: the router's weights are no softmax of its scores, which naee reckons with; choose experts "
        "by another score, such as reap"
    )

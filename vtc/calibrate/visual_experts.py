"""`visual_experts` with ``experts: auto``: the experts of each layer that visual tokens need most."""

from __future__ import annotations

from vtc.calibrate.measuring import Measuring
from vtc.calibrate.prune_experts import random_scores
from vtc.experts.importance import expert_scores, keep_sets
from vtc.recipe import Recipe
from vtc.recipe.stages import VisualExpertsEntry
from vtc.recipe.values import experts_left


def choose(entry: VisualExpertsEntry, before: Recipe, measuring: Measuring) -> list[list[int]]:
    """For each decoder layer, ``keep`` experts, ascending."""
    decoder = measuring.model(before).adapter.facts.decoder
    if entry.score == "random":
        scores = random_scores(decoder, entry.seed)
    else:
        scores = expert_scores(measuring.experts(before), entry.score, "visual")
    sets: list[list[int]] = keep_sets(scores, experts_left(entry.keep or decoder.experts, decoder.experts)).tolist()
    return sets

"""`prune` whose selector has ``layers: auto``: the encoder layer whose attention moves the answers least."""

from __future__ import annotations

from vtc.calibrate.measuring import Measuring
from vtc.recipe import Recipe
from vtc.recipe.stages import PruneEntry, StageEntry


def choose(entry: PruneEntry, before: Recipe, measuring: Measuring) -> list[int]:
    """The encoder layer whose attention, at this budget, moves the answers least (mean KL divergence)."""
    candidates: dict[int, StageEntry] = {
        layer: entry.model_copy(update={"selector": entry.selector.model_copy(update={"layers": (layer,)})})
        for layer in measuring.model(before).plan.encoder_layers
    }
    return measuring.best("calibrating the attention layer", before, candidates)[:1]

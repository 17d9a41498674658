"""`frequency_filter` with ``keep: auto``: the smallest grid that keeps the wanted share of the spectrum."""

from __future__ import annotations

import torch

from vtc.calibrate.measuring import Measuring
from vtc.recipe import Recipe
from vtc.recipe.stages import FrequencyFilterEntry
from vtc.stages.frequency_filter import retained_energy


def choose(entry: FrequencyFilterEntry, before: Recipe, measuring: Measuring) -> int:
    """Tokens of the smallest grid, of the encoder's aspect, that keeps ``energy`` of the tokens' DCT energy."""
    model, layout = measuring.model(before), measuring.adapter.facts.layout
    grid = layout.grids[0]  # of several a plan has refused this choice
    sizes = sorted({(rows, max(1, round(rows * grid[1] / grid[0]))) for rows in range(1, grid[0] + 1)})

    def measure() -> list[float]:
        pixels = [measuring.adapter.preprocess(sample.images) for sample in measuring.samples]
        tokens = torch.cat([model.vision.tokens(one).features for one in pixels])
        return [retained_energy(tokens, grid, size) for size in sizes]

    with torch.inference_mode():
        energies = measuring.measurements.get(f"energy {before.digest}", measure)
    wanted = entry.energy or 0.0
    height, width = next(size for size, energy in zip(sizes, energies, strict=True) if energy >= wanted - 1e-9)
    return height * width * layout.spans

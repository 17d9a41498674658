"""Models that spend a budget of visual tokens without looking: what every accuracy is reported beside."""

from __future__ import annotations

from typing import Literal

from vtc.compressed.build import apply_recipe
from vtc.compressed.model import CompressedModel
from vtc.compressed.vision_encoder import DownsampledImage, NoImage
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.recipe import NONE, Recipe
from vtc.recipe.selectors import RandomEntry, UniformEntry
from vtc.recipe.stages import PruneEntry


def baseline(
    adapter: VLMAdapter, name: Literal["random", "uniform", "downsample", "blind"], keep: int, seed: int = 0
) -> CompressedModel:
    """A baseline at a budget of `keep` visual tokens of an image.

    ``downsample`` shrinks the image to the largest grid of at most `keep` tokens that is as square as the model's own;
    ``blind`` shows the decoder no image at all.

    Raises
    ------
    InputError
        For ``downsample`` where the model's tokens do not follow from the size of one picture.
    """
    whole = plan(NONE, adapter.facts)
    if name in ("random", "uniform"):
        selector = RandomEntry(seed=seed) if name == "random" else UniformEntry()
        entry = PruneEntry(
            keep=min(keep, adapter.facts.layout.spans * adapter.facts.layout.selectable), selector=selector
        )
        return apply_recipe(adapter, Recipe(version=1, name=name, stages=(entry,)))
    if name == "blind":
        return CompressedModel(adapter, whole, NoImage(adapter.facts.decoder.hidden_width(0)), 0).eval()
    layout = adapter.facts.layout
    if not layout.whole_views or layout.spans > 1 or adapter.facts.encoder.merge > 1 or adapter.pixels.patches:
        raise InputError(
            f"a smaller image does not make fewer tokens of {adapter.facts.model_type} as it is served here"
        )
    grid = downsampled_grid(layout.view_grid, keep)
    return CompressedModel(
        adapter, whole, DownsampledImage(adapter, whole.encoder_layers, grid), grid[0] * grid[1]
    ).eval()


def downsampled_grid(grid: tuple[int, int], keep: int) -> tuple[int, int]:
    """The largest grid (h, w) of at most `keep` tokens among those nearest to the aspect of `grid`."""
    height = max(1, min(grid[0], round((keep * grid[0] / grid[1]) ** 0.5)))
    candidates = [(h, min(grid[1], keep // h)) for h in (height, max(1, height - 1)) if keep // h > 0]
    return max(candidates, key=lambda shape: (shape[0] * shape[1], -abs(shape[0] / shape[1] - grid[0] / grid[1])))

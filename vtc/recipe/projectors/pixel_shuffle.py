"""Pixel shuffle in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Literal

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.projectors.base import SquaresEntry, TrainedProjectorEntry, linear, passing
from vtc.recipe.selectors.base import Product


class PixelShuffleEntry(SquaresEntry, TrainedProjectorEntry):
    """The patches of each square laid end to end, then two layers, which begin as those of their mean.

    Based on InternVL (arXiv 2404.16821).
    """

    summary = "each square laid end to end, then two layers"
    paper = "InternVL (arXiv 2404.16821)"
    name: Literal["pixel_shuffle"] = "pixel_shuffle"

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        return linear(*_layers(facts, prod(grid) // keep))

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        return passing(keep, *_layers(facts, prod(grid) // keep))


def _layers(facts: ModelFacts, patches: int) -> list[tuple[int, int]]:
    out = facts.decoder.width
    return [(facts.token_width * patches, out), (out, out)]

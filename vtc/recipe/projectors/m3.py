"""M3 in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Literal

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.projectors.base import SquaresEntry
from vtc.recipe.selectors.base import Product


class M3Entry(SquaresEntry):
    """Means of squares of projected tokens. It has no parameters: its authors train encoder and decoder for it, and
    what it gives an untrained model is plain pooling.

    Based on M3 (arXiv 2405.17430).
    """

    summary = "the model's own projector, then average pooling; nothing to train"
    paper = "M3 (arXiv 2405.17430)"
    elastic = True
    name: Literal["m3"] = "m3"

    def projections(self, keep: int, grid: Grid) -> int:
        return prod(grid)

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        return 0

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        return ()

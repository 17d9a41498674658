"""TokenFLEX in a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isqrt
from typing import Literal

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.projectors.base import TrainedProjectorEntry, linear, passing, pooling
from vtc.recipe.selectors.base import Product

EXPANSION = 3


class TokenFlexEntry(TrainedProjectorEntry):
    """Pooling to a square number of tokens, then a gated layer that is the same for all numbers.

    Based on TokenFLEX (arXiv 2504.03154).
    """

    summary = "average pooling, then a gated layer"
    paper = "TokenFLEX (arXiv 2504.03154)"
    elastic = True
    name: Literal["tokenflex"] = "tokenflex"

    def keeps(self, grid: Grid) -> Sequence[int]:
        return [side * side for side in range(1, min(grid) + 1)]

    def grid_of(self, keep: int, grid: Grid) -> Grid:
        return isqrt(keep), isqrt(keep)

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        width, out = facts.token_width, facts.decoder.width
        inner = EXPANSION * width
        return 2 * width + linear((width, inner), (width, inner), (inner, out))

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        width, out = facts.token_width, facts.decoder.width
        inner = EXPANSION * width
        return [
            *pooling(width, grid, self.grid_of(keep, grid)),
            *passing(keep, (width, inner), (width, inner), (inner, out)),
        ]

"""LLaVA-SP in a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Annotated, Literal

from pydantic import Field

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.projectors.base import TrainedProjectorEntry, pooling
from vtc.recipe.selectors.base import Product

STEP = 4
"""Sides that an image is pooled to are multiples of this."""


class LlavaSpEntry(TrainedProjectorEntry):
    """Tokens of the whole image before all patches. It compresses nothing: it adds a token for each side of 4, 8, 12
    and so on up to the grid's, six to 576.

    Based on LLaVA-SP (arXiv 2507.00505), its pooling version.
    """

    summary = "adds tokens of the whole image; compresses nothing"
    paper = "LLaVA-SP (arXiv 2507.00505)"
    has_grid = False
    name: Literal["llava_sp"] = "llava_sp"
    inner: Annotated[int, Field(ge=1)] = 512
    """Values that a convolution gives."""

    def keeps(self, grid: Grid) -> Sequence[int]:
        return [len(sides_of(grid)) + prod(grid)] if grid[0] == grid[1] and grid[0] % STEP == 0 else []

    def projections(self, keep: int, grid: Grid) -> int:
        return prod(grid)

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        kernels = sum(side**2 for side in sides_of(grid)) * facts.token_width
        return (kernels + facts.decoder.width) * self.inner

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        for side in sides_of(grid):
            yield from [] if side == grid[0] else pooling(facts.token_width, grid, (side, side))
            yield 1, side**2 * facts.token_width, self.inner
        yield len(sides_of(grid)), self.inner, facts.decoder.width


def sides_of(grid: Grid) -> tuple[int, ...]:
    """Sides that a grid is pooled to, its own the last."""
    return tuple(range(STEP, grid[0] + 1, STEP))

"""C-Abstractor in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Literal

from pydantic import Field

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.projectors.base import PooledEntry, linear, passing, pooling
from vtc.recipe.selectors.base import Product

NEAR = 9
"""Tokens that a convolution looks at."""
SQUEEZE = 0.25
"""Share of a block's inputs that its squeeze has."""


class CAbstractorEntry(PooledEntry):
    """Convolutions before and after average pooling, whose gates know the whole image.

    Based on Honeybee (arXiv 2312.06742).
    """

    summary = "convolutions, average pooling, convolutions, two layers"
    paper = "Honeybee (arXiv 2312.06742)"
    name: Literal["c_abstractor"] = "c_abstractor"
    depth: Annotated[int, Field(ge=1)] = 3
    """Blocks of convolutions before the pooling, and as many after it."""
    hidden: Annotated[int, Field(ge=4)] = 1024
    """Channels of the convolutions."""

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        width, out = facts.token_width, facts.decoder.width
        blocks = sum(self._block_parameters(inputs) for inputs in self._inputs(width))
        return prod(grid) * width + blocks + linear((self.hidden, out), (out, out))

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        width, out, hidden = facts.token_width, facts.decoder.width, self.hidden
        for number, inputs in enumerate(self._inputs(width)):
            tokens, inner = prod(grid) if number < self.depth else keep, round(SQUEEZE * inputs)
            yield from [(tokens, inputs, hidden), (tokens, NEAR, hidden), (1, hidden, inner), (1, inner, hidden)]
            yield tokens, hidden, hidden
            if inputs != hidden:
                yield tokens, inputs, hidden
        yield from pooling(hidden, grid, self.grid_of(keep, grid))
        yield from passing(keep, (hidden, out), (out, out))

    def _inputs(self, width: int) -> list[int]:
        """Channels that come to each block."""
        return [width, *[self.hidden] * (2 * self.depth - 1)]

    def _block_parameters(self, inputs: int) -> int:
        hidden, norms = self.hidden, 2 * self.hidden
        inner = round(SQUEEZE * inputs)
        shortcut = 0 if inputs == hidden else inputs * hidden + norms
        convolutions = inputs * hidden + NEAR * hidden + hidden**2 + 3 * norms
        return convolutions + linear((hidden, inner), (inner, hidden)) + shortcut

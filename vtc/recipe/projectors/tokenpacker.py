"""TokenPacker in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Literal

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.projectors.base import SeesSquaresEntry, linear, passing, pooling, seeing
from vtc.recipe.selectors.base import Product


class TokenPackerEntry(SeesSquaresEntry):
    """A token of a smaller grid looks at the patches of its own square, in several encoder layers.

    Based on TokenPacker (arXiv 2407.02392).
    """

    summary = "each square seen by its own mean, in several encoder layers"
    paper = "TokenPacker (arXiv 2407.02392)"
    reads = "the encoder's hidden states in several layers"
    name: Literal["tokenpacker"] = "tokenpacker"

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        width, out = facts.token_width, facts.decoder.width
        seen = 2 * linear((self.read(facts), width), (width, width)) + linear((width, 4 * width))
        return width**2 + seen + 6 * width + linear((width, out), (out, out))

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        width, out, tokens = facts.token_width, facts.decoder.width, prod(grid)
        return [
            *pooling(width, grid, self.grid_of(keep, grid)),
            (keep, width, width),
            *2 * passing(tokens, (self.read(facts), width), (width, width)),
            *seeing(width, keep, tokens),
            *passing(keep, (width, out), (out, out)),
        ]

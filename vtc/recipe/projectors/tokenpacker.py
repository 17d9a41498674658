"""TokenPacker in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Literal

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading
from vtc.recipe.projectors.base import (
    Depths,
    SquaresEntry,
    TrainedProjectorEntry,
    linear,
    passing,
    pooling,
    read_at,
)
from vtc.recipe.selectors.base import Product


class TokenPackerEntry(SquaresEntry, TrainedProjectorEntry):
    """A token of a smaller grid looks at the patches of its own square, in several encoder layers.

    Based on TokenPacker (arXiv 2407.02392).
    """

    summary = "each square seen by its own mean, in several encoder layers"
    paper = "TokenPacker (arXiv 2407.02392)"
    reads = "the encoder's hidden states in several layers"
    name: Literal["tokenpacker"] = "tokenpacker"
    depths: Depths = (0.522, 0.696, 0.957, 1.0)
    """Depths of the encoder at which keys and values are read; 1 is what goes to the projector. The default is the
    authors' layers 12, 16, 22 and 23 of CLIP-L. ``[1.0]`` costs least."""

    def readings(self, facts: ModelFacts) -> tuple[Reading, ...]:
        return read_at(self.depths, facts)

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        width, out = facts.token_width, facts.decoder.width
        read = width * len(self.depths)
        attention = linear((width, 4 * width))
        return (
            width**2
            + 2 * linear((read, width), (width, width))
            + 6 * width
            + attention
            + linear((width, out), (out, out))
        )

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        width, out, tokens = facts.token_width, facts.decoder.width, prod(grid)
        read = width * len(self.depths)
        return [
            *pooling(width, grid, self.grid_of(keep, grid)),
            (keep, width, width),
            *2 * passing(tokens, (read, width), (width, width)),
            *seeing(width, keep, tokens),
            *passing(keep, (width, out), (out, out)),
        ]


def seeing(width: int, keep: int, tokens: int) -> list[Product]:
    """Products of attention in which each of `tokens` is seen by one of `keep`."""
    return [
        (keep, width, width),
        (tokens, width, 2 * width),
        (tokens, width, 1),
        (1, tokens, width),
        (keep, width, width),
    ]

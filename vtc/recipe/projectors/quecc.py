"""QueCC in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Literal

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.projectors.base import SeesSquaresEntry, linear, passing, seeing
from vtc.recipe.selectors.base import Product


class QueCCEntry(SeesSquaresEntry):
    """A token for each square, steered by the question, then the model's own projector.

    Its authors take the question from a pass of it through the language model; here it is the mean of its input
    embeddings, which costs nothing and knows less.

    Based on QueCC (arXiv 2411.03312).
    """

    summary = "each square seen by the question, then the model's own projector"
    paper = "QueCC (arXiv 2411.03312)"
    reads = "the question, and the encoder's hidden states in several layers"
    text_aware = True
    name: Literal["quecc"] = "quecc"

    def projections(self, keep: int, grid: Grid) -> int:
        return keep

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        width, text = facts.token_width, facts.decoder.width
        normed = 2 * width
        seen = 2 * (linear((self.read(facts), width), (width, width)) + normed)
        asking = linear((text, width), (width, width), (width, width)) + 2 * normed + (prod(grid) // keep + 1) * width
        return asking + seen + linear((width, 4 * width))

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        width, tokens = facts.token_width, prod(grid)
        return [
            (1, facts.decoder.width, width),
            *passing(tokens, (width, width), (width, width)),
            (1, tokens, width),
            *2 * passing(tokens, (self.read(facts), width), (width, width)),
            *seeing(width, keep, tokens),
        ]

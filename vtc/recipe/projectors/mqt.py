"""MQT in a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Literal

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.projectors.base import TrainedProjectorEntry, linear
from vtc.recipe.selectors.base import Product

QUERIES = 256


class MqtEntry(TrainedProjectorEntry):
    """The first of 256 learned queries, whose attention goes by places alone: a learned pooling. They fill no grid.

    Based on MQT (arXiv 2405.19315).
    """

    summary = "the first K of 256 learned queries"
    paper = "MQT (arXiv 2405.19315)"
    elastic = True
    has_grid = False
    name: Literal["mqt"] = "mqt"

    def keeps(self, grid: Grid) -> Sequence[int]:
        return range(1, QUERIES + 1)

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        width = facts.token_width
        return QUERIES * width + linear((width, 4 * width)) + 6 * width + width * facts.decoder.width

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        width, tokens = facts.token_width, prod(grid)
        return [
            (keep, width, width),
            (tokens, width, 2 * width),
            (keep, width, tokens),
            (keep, tokens, width),
            (keep, width, width),
            (keep, width, facts.decoder.width),
        ]

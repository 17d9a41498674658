"""QMoP in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Literal

from pydantic import Field

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading
from vtc.recipe.projectors.base import PooledEntry, linear, passing, pooling
from vtc.recipe.selectors.base import Product

BRANCHES = ("resampler", "pooling", "pruning")


class QmopEntry(PooledEntry):
    """A resampler, pooling and pruning, weighed by a router that looks at the image and the question.

    Its authors' code and text were not to be had: beyond the three branches and the router all of it is assumed, as the
    module's docstring says.

    Based on QMoP (arXiv 2603.21232).
    """

    summary = "resampler, pooling and pruning, weighed by image and question"
    paper = "QMoP (arXiv 2603.21232)"
    reads = "the question, and the encoder's CLS token where it has one"
    text_aware = True
    name: Literal["qmop"] = "qmop"
    mixture: Literal["top_2", "all"] = "top_2"
    """Whether the branch that the router rates lowest is left out."""
    router: Annotated[int, Field(ge=1)] = 256
    """Inner size of the router."""

    def readings(self, facts: ModelFacts) -> tuple[Reading, ...]:
        return (Reading("cls_state", facts.encoder.feature_layer + 1),) if facts.encoder.has_cls else ()

    @staticmethod
    def image(facts: ModelFacts) -> int:
        """Values of the image's vector: a CLS token is no wider than a patch, and a token may be several of those."""
        return facts.encoder.width if facts.encoder.has_cls else facts.token_width

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        width, out = facts.token_width, facts.decoder.width
        resampler = (keep + prod(grid)) * width + 2 * width + 4 * width**2
        vectors = self.image(facts) + out
        router = 2 * vectors + linear((vectors, self.router), (self.router, len(BRANCHES)))
        return resampler + linear((width, 1)) + len(BRANCHES) * linear((width, out)) + router

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        width, out, tokens = facts.token_width, facts.decoder.width, prod(grid)
        return [
            *[(keep, width, width), (tokens, width, 2 * width), (keep, width, tokens), (keep, tokens, width)],
            (keep, width, width),
            *pooling(width, grid, self.grid_of(keep, grid)),
            (tokens, width, 1),
            *len(BRANCHES) * passing(keep, (width, out)),
            (1, self.image(facts) + out, self.router),
            (1, self.router, len(BRANCHES)),
        ]

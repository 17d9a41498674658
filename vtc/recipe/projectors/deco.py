"""DeCo in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.projectors.base import PooledEntry, linear, passing, pooling
from vtc.recipe.selectors.base import Product


class DecoEntry(PooledEntry):
    """Average pooling on the encoder's grid, then two layers: the bar that other projectors have to beat.

    Based on DeCo (arXiv 2405.20985).
    """

    summary = "average pooling, then two layers"
    paper = "DeCo (arXiv 2405.20985)"
    elastic = True
    name: Literal["deco"] = "deco"

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        return linear(*_layers(facts))

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        return [*pooling(facts.token_width, grid, self.grid_of(keep, grid)), *passing(keep, *_layers(facts))]


def _layers(facts: ModelFacts) -> list[tuple[int, int]]:
    width, out = facts.token_width, facts.decoder.width
    return [(width, out), (out, out)]

"""Pooling in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Literal

from vtc.facts.layout import shared_out
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product


class PoolingEntry(EncoderSelectorEntry):
    """The grid in cells of near-equal size, each the mean of its tokens: adaptive average pooling to any budget."""

    merges = True
    summary = "mean over cells of the grid; a baseline that merges"
    name: Literal["pooling"] = "pooling"

    def products(self, choice: Choice) -> Iterable[Product]:
        sizes = [prod(grid) for grid in choice.grids] or [choice.tokens]
        shares = zip(shared_out(choice.keep, sizes), sizes, strict=True)
        return tuple((share, size, choice.facts.token_width) for share, size in shares)

"""DivPrune in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product


class DivPruneEntry(EncoderSelectorEntry):
    """Tokens that are far from one another: each the one whose nearest chosen neighbour is furthest away.

    Based on DivPrune (arXiv 2503.02175).
    """

    summary = "largest distance to the tokens chosen so far (max-min)"
    paper = "DivPrune (arXiv 2503.02175)"
    reads = "projected tokens"
    projects = True
    after_projector = True
    name: Literal["divprune"] = "divprune"

    def products(self, choice: Choice) -> Iterable[Product]:
        return ((choice.tokens, choice.facts.decoder.width, choice.tokens),)

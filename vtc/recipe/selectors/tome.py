"""ToMe in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product
from vtc.recipe.selectors.merging import matching_products


class ToMeEntry(EncoderSelectorEntry):
    """The most similar pairs of tokens merge, again and again, until the budget is met.

    Based on ToMe (arXiv 2210.09461), applied after the encoder and not inside its layers.
    """

    merges = True
    summary = "similar tokens merge pairwise (bipartite matching)"
    paper = "ToMe (arXiv 2210.09461)"
    reads = "keys of an encoder layer"
    reads_encoder_grid = True
    name: Literal["tome"] = "tome"

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        return {"keys": Reading("keys", running[-1])}

    def products(self, choice: Choice) -> Iterable[Product]:
        return matching_products(choice)

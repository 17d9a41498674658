"""GlobalCom2 in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from vtc.facts.model import ModelFacts
from vtc.recipe.layers import after_features
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product
from vtc.recipe.selectors.views import views_products
from vtc.recipe.values import Multiple


class GlobalCom2Entry(EncoderSelectorEntry):
    """The whole view says what share of the budget each tile gets, and has a say in which of its tokens stay.

    Of an image that is one view the highest scores are kept.

    Based on GlobalCom2 (arXiv 2501.05179).
    """

    summary = "CLS scores of tile and whole view, with a budget for each tile"
    paper = "GlobalCom2 (arXiv 2501.05179)"
    reads = "the CLS row of the layer after the features, before the softmax"
    where = "across tiles"
    reads_encoder_grid = True
    needs_cls = True
    across_views = True
    name: Literal["globalcom2"] = "globalcom2"
    temperature: Multiple = 10.0
    """Temperature of the softmax over tiles; a higher one evens their shares out."""
    as_published: bool = False
    """Whether it computes as the authors' code does: the whole view is summed over equal regions, whatever the padding,
    and what does not divide among tiles goes to the last row and column of them; otherwise a patch counts for the tile
    that shows its middle."""

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        return {"scores": Reading("cls_logits", after_features(facts.encoder, running))}

    def products(self, choice: Choice) -> Iterable[Product]:
        return views_products(choice)

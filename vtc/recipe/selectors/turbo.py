"""Turbo in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product
from vtc.recipe.selectors.merging import matching_products
from vtc.recipe.values import Weight


class TurboEntry(EncoderSelectorEntry):
    """As ToMe, but tokens that the CLS token attends to are spared.

    Based on Turbo (arXiv 2407.11717).
    """

    merges = True
    summary = "similar tokens of little CLS attention merge pairwise"
    paper = "Turbo (arXiv 2407.11717)"
    reads = "the CLS row and keys of an encoder layer"
    reads_encoder_grid = True
    needs_cls = True
    name: Literal["turbo"] = "turbo"
    alpha: Weight = 1.0
    """How much the CLS token's attention spares a token."""

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        return {"keys": Reading("keys", running[-1]), "attention": Reading("cls_attention", running[-1])}

    def products(self, choice: Choice) -> Iterable[Product]:
        return matching_products(choice, extra=2)

"""HiRED in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product
from vtc.recipe.selectors.views import views_products


class HiREDEntry(EncoderSelectorEntry):
    """Tiles share the budget by the attention that their part of the whole view gets; then the most attended tokens.

    Of an image that is one view the most attended tokens are kept.

    Based on HiRED (arXiv 2408.10945).
    """

    summary = "CLS attention, with a budget for each tile"
    paper = "HiRED (arXiv 2408.10945)"
    reads = "the CLS row of the last encoder layer; with tiles, of the first one too"
    where = "across tiles"
    reads_encoder_grid = True
    needs_cls = True
    across_views = True
    name: Literal["hired"] = "hired"
    share: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.5
    """Share of the budget that goes to the whole view; what is left of 1 is the share of its patches that vote."""
    as_published: bool = False
    """Whether it computes as the authors' code does: runs of equally many patches in raster order stand for the tiles,
    and not the regions that they show."""

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        last = {"last": Reading("cls_attention", running[-1])}
        several = facts.layout.span_views > 1
        return {"first": Reading("cls_attention", running[0]), **last} if several else last

    def products(self, choice: Choice) -> Iterable[Product]:
        return views_products(choice)

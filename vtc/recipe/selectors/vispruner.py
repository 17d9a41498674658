"""VisPruner in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product


class VisPrunerEntry(EncoderSelectorEntry):
    """Most attended tokens for a share of the budget, then those that resemble the others least.

    Based on VisPruner (ICCV 2025, arXiv 2412.01818v2).
    """

    summary = "highest CLS attention, the rest of the budget without duplicates"
    paper = "VisPruner (arXiv 2412.01818v2)"
    reads = "the CLS row of the encoder's attention"
    reads_encoder_grid = True
    needs_cls = True
    name: Literal["vispruner"] = "vispruner"
    important: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    """Share of the budget that goes by attention."""

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        return {"attention": Reading("cls_attention", running[-1])}

    def products(self, choice: Choice) -> Iterable[Product]:
        if int(choice.keep * self.important) < choice.keep:
            yield choice.tokens, choice.facts.token_width, choice.tokens

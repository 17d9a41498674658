"""ToDRE in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product


class ToDREEntry(EncoderSelectorEntry):
    """From the most attended token on, each the one that resembles the chosen ones least in sum.

    Based on ToDRE (arXiv 2505.18757), stage 1; its stage 2 is a ``visual_exit``.
    """

    summary = "smallest summed similarity to the tokens chosen so far (max-sum)"
    paper = "ToDRE (arXiv 2505.18757)"
    reads = "projected tokens; the CLS row where there is one"
    reads_encoder_grid = True
    projects = True
    name: Literal["todre"] = "todre"

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        return {"start": Reading("cls_attention", running[-1])} if facts.encoder.has_cls else {}

    def products(self, choice: Choice) -> Iterable[Product]:
        return ((choice.tokens, choice.facts.decoder.width, choice.tokens),)

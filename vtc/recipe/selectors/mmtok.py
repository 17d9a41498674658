"""MMTok in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product
from vtc.recipe.values import Multiple, Weight


class MMTokEntry(EncoderSelectorEntry):
    """Tokens that together cover the question's words and the image's own tokens best (greedy maximum coverage).

    Based on MMTok (arXiv 2508.18264); no words are left out of the question.
    """

    summary = "greedy coverage of the question and of the image"
    paper = "MMTok (arXiv 2508.18264)"
    reads = "features, projected tokens and the question"
    projects = True
    text_aware = True
    name: Literal["mmtok"] = "mmtok"
    text_temperature: Multiple = 0.02
    """How local a token's coverage of the question is; the paper has 0.02 for LLaVA and 0.01 for Qwen2.5-VL."""
    vision_temperature: Multiple = 0.2
    """How local a token's coverage of the image is."""
    alpha: Weight = 0.5
    """Weight of the image against the question."""

    def products(self, choice: Choice) -> Iterable[Product]:
        return (
            (choice.tokens, choice.facts.token_width, choice.tokens),
            (choice.text, choice.facts.decoder.width, choice.tokens),
            (choice.keep, choice.text + choice.tokens, choice.tokens),
        )

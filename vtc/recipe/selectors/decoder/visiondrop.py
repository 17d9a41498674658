"""VisionDrop in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vtc.recipe.selectors.base import DecoderSelectorEntry


class VisionDropEntry(DecoderSelectorEntry):
    """Attention from the image's own tokens; a share of the budget goes to tokens that the others are merged into.

    Based on VisionDrop (arXiv 2506.22283).
    """

    merges = True
    summary = "attention from visual tokens, and contextual tokens that others merge into"
    paper = "VisionDrop (arXiv 2506.22283)"
    reads = "queries and keys of the decoder layer after the cut"
    text_aware = False
    query = "last_token"
    name: Literal["visiondrop"] = "visiondrop"
    contextual: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.15
    """Share of the budget that goes to contextual tokens, rounded to whole tokens; at least one token is not
    contextual."""
    as_published: bool = False
    """Whether it computes as the authors' code does: a contextual token is its target plus the mean of what went to it,
    and not the mean of them all."""

    def rows(self, text: int, visual: int) -> int:
        return visual

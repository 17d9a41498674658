"""PyramidDrop in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from typing import Literal

from vtc.recipe.selectors.base import DecoderSelectorEntry


class PyramidDropEntry(DecoderSelectorEntry):
    """The visual tokens that the prompt's last token attends to in the decoder layer after the cut.

    Based on PyramidDrop (arXiv 2410.17247), which cuts three times, by half each; original positions are kept.
    """

    summary = "highest attention from the last token, layer after the cut"
    paper = "PyramidDrop (arXiv 2410.17247)"
    reads = "queries and keys of the decoder layer after the cut"
    query = "last_token"
    name: Literal["pyramiddrop"] = "pyramiddrop"

"""FastV in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from typing import Literal

from vtc.recipe.selectors.base import DecoderSelectorEntry


class FastVEntry(DecoderSelectorEntry):
    """The visual tokens that the prompt's last token attends to in the decoder layer before the cut.

    Based on FastV (arXiv 2403.06764); the authors cut before layer 2 or 3.
    """

    summary = "highest attention from the last token, layer before the cut"
    paper = "FastV (arXiv 2403.06764)"
    reads = "queries and keys of the decoder layer before the cut"
    query = "last_token"
    reads_before = True
    name: Literal["fastv"] = "fastv"

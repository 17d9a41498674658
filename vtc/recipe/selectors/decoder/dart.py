"""DART in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vtc.recipe.selectors.base import DecoderSelectorEntry


class DARTEntry(DecoderSelectorEntry):
    """Tokens that resemble a few pivots least, the pivots being image and text tokens of large keys.

    Based on DART (arXiv 2502.11494), which cuts before layer 2.
    """

    summary = "tokens that duplicate pivot tokens least"
    paper = "DART (arXiv 2502.11494)"
    reads = "keys of the decoder layer before the cut"
    reads_before = True
    name: Literal["dart"] = "dart"
    pivots_image: Annotated[int, Field(ge=1)] = 4
    """Pivots among the image's tokens; no more are taken than the budget has."""
    pivots_text: Annotated[int, Field(ge=0)] = 4
    """Pivots among the text tokens that ask."""
    as_published: bool = False
    """Whether it computes as the authors' code does: pivots take turns in the order of a Python set of places in the
    row, padding left out of the count."""

    def rows(self, text: int, visual: int) -> int:
        return 0

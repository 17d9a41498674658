"""Feather in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vtc.recipe.selectors.base import DecoderSelectorEntry


class FeatherEntry(DecoderSelectorEntry):
    """Attention from the last token without rotary positions, and a share of the budget spread evenly.

    Based on FEATHER (arXiv 2412.13180).
    """

    summary = "attention from the last token without positions, and a uniform share"
    paper = "FEATHER (arXiv 2412.13180)"
    reads = "queries and keys of the decoder layer before the cut"
    query = "last_token"
    reads_before = True
    name: Literal["feather"] = "feather"
    uniform: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.33
    """Share of the budget that is spread evenly."""

"""Low-rank updates of the decoder in a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vtc.recipe.values import Written


class Lora(Written):
    """A low-rank update of each linear layer of the decoder, merged into its weights (LoRA, arXiv 2106.09685)."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of an update."""
    alpha: Annotated[int, Field(ge=1)] = 32
    """An update is alpha / rank times the product of its two factors."""

"""SparseVLM in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vtc.recipe.selectors.base import DecoderSelectorEntry


class SparseVLMEntry(DecoderSelectorEntry):
    """Attention from the text tokens that resemble the image, in the layer before the cut.

    Based on SparseVLM (arXiv 2410.04417); ties are resolved by the lowest index in place of noise.
    """

    merges = True
    summary = "attention from text that resembles the image; dropped tokens recycled"
    paper = "SparseVLM (arXiv 2410.04417)"
    reads = "queries and keys of the decoder layer before the cut"
    reads_before = True
    name: Literal["sparsevlm"] = "sparsevlm"
    recycle: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.3
    """Share of the dropped tokens that comes back as a few cluster means, inside the budget; 0 recycles none."""

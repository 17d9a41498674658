"""Uniform in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from typing import Literal

from vtc.recipe.selectors.base import EncoderSelectorEntry


class UniformEntry(EncoderSelectorEntry):
    """Tokens at a uniform stride in raster order: the strongest baseline that does not look at the image."""

    summary = "uniform stride in raster order; a baseline"
    after_projector = True
    name: Literal["uniform"] = "uniform"

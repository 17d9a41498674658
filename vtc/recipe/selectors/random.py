"""Random in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from vtc.recipe.selectors.base import EncoderSelectorEntry


class RandomEntry(EncoderSelectorEntry):
    """The same random subset for every image: the floor that any method has to beat."""

    summary = "one random subset, the same for every image; a baseline"
    after_projector = True
    name: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Draws the subset."""

    def described(self, layers: Sequence[int]) -> str:
        return f"random, seed {self.seed}"

"""FoPru in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import EncoderSelectorEntry


class FoPruEntry(EncoderSelectorEntry):
    """Attention among patches: received or given, whichever varies more.

    Based on FoPru (arXiv 2411.14164); which of the two to take is from a re-implementation, not from the authors.
    """

    summary = "attention among patches, by token or by row of the image"
    paper = "FoPru (arXiv 2411.14164)"
    reads = "the encoder's attention among patches"
    compares_patches = True
    reads_encoder_grid = True
    name: Literal["fopru"] = "fopru"
    strategy: Literal["rank", "row"] = "rank"
    """What competes: tokens (``rank``), or whole rows of the image (``row``). Tokens that have lost their grid always
    compete one by one."""

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        return {"attention": Reading("patch_attention", running[-1])}

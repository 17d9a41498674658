"""EVS in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from vtc.facts.model import ModelFacts
from vtc.recipe.selectors.base import EncoderSelectorEntry, Fault


class EVSEntry(EncoderSelectorEntry):
    """What changes from frame to frame of a video, at one budget for all frames; the first frame comes first.

    For a model that is made ready for clips (``--frames``) and gives a clip one run of tokens. A frame is a grid of
    tokens; some models make one grid of two pictures.

    Based on EVS (arXiv 2510.14624).
    """

    summary = "lowest similarity to the frame before"
    paper = "EVS (arXiv 2510.14624)"
    reads = "projected tokens of several frames"
    where = "across frames"
    projects = True
    across_frames = True
    name: Literal["evs"] = "evs"
    frames: Annotated[int, Field(ge=2)] | None = None
    """Number of frames that a clip must have; left out, any clip is served."""

    def check(self, facts: ModelFacts, running: Sequence[int], fault: Fault) -> None:
        if self.frames not in (None, len(facts.layout.grids)):
            fault("frames", f"is {self.frames}, and the clip has {len(facts.layout.grids)}")

"""VisionZip in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading, ReadingKind
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product
from vtc.recipe.selectors.merging import contextual_products


class VisionZipEntry(EncoderSelectorEntry):
    """Most attended tokens, and for a share of the budget contextual tokens that stand for the others.

    Without a CLS token attention received takes its place.

    Based on VisionZip (arXiv 2412.04467).
    """

    merges = True
    summary = "highest attention, and contextual tokens that the others merge into"
    paper = "VisionZip (arXiv 2412.04467)"
    reads = "the CLS row (or attention received) and keys of an encoder layer"
    reads_encoder_grid = True
    name: Literal["visionzip"] = "visionzip"
    contextual: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.15625
    """Share of the budget that goes to contextual tokens, rounded to whole tokens; at least one token is not
    contextual."""
    as_published: bool = False
    """Whether it computes as the authors' code does: it adds the mean of the others to the token itself, which gives
    about twice the norm of any token of the encoder; otherwise a contextual token is the mean of what it stands for."""

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        kind: ReadingKind = "cls_attention" if facts.encoder.has_cls else "received_attention"
        return {"attention": Reading(kind, running[-1]), "keys": Reading("keys", running[-1])}

    def products(self, choice: Choice) -> Iterable[Product]:
        return contextual_products(choice, self.contextual)

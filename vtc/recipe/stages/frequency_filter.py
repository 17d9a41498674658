"""`frequency_filter` in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from vtc.recipe.stages.base import Place, StageEntry
from vtc.recipe.values import Fraction, KeepOrAuto

DEFAULT_ENERGY = 0.95


class FrequencyFilterEntry(StageEntry):
    """Keep the low frequencies of the token grid: DCT, crop, smaller inverse DCT, before the projector.

    Every token after it is a mixture of many, so none has a place in the image.

    Based on Fourier-VLM (arXiv 2508.06038).
    """

    summary = "DCT low-pass on the token grid"
    acts = Place.TOKENS
    keeps_places = False
    guides: ClassVar[Mapping[str, str]] = {"keep": "energy"}
    kind: Literal["frequency_filter"] = "frequency_filter"
    keep: KeepOrAuto
    """Tokens of an image that are left, as a smaller grid of the same aspect; ``auto`` is the smallest grid that holds
    ``energy`` of the spectrum on calibration data."""
    energy: Fraction | None = None
    """Share of the spectrum's energy that ``keep: auto`` has to hold; 0.95 there if nothing is said."""
    preserve_mean: bool = True
    """Whether the gain is undone that the cropped orthonormal transform puts on a constant field; a model that was not
    fine-tuned for the filter needs that."""

    @model_validator(mode="before")
    @classmethod
    def _default_energy(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("keep") == "auto" and data.get("energy") is None:
            return {**data, "energy": DEFAULT_ENERGY}
        return data

    @model_validator(mode="after")
    def _energy_goes_with_auto(self) -> FrequencyFilterEntry:
        if self.keep != "auto" and self.energy is not None:
            raise ValueError(f"energy is only for keep: auto, here keep is {self.keep}")
        return self

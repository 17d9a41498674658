"""Where the experts of a mixture are to live, in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from vtc.recipe.values import Written

Method = Literal["modality", "contiguous", "random", "balanced", "eplb", "solved"]
Homes = Literal["sample", "modality"]
METHODS: tuple[Method, ...] = get_args(Method)


class ExpertPlacement(Written):
    """A map from experts to the devices of expert parallelism, for whoever serves the model.

    It changes nothing of what the model computes. Bins of experts by modality are as in SMoES (arXiv 2604.23996).
    """

    devices: Annotated[int, Field(ge=1)]
    """Devices that share the experts of each layer; it divides their number."""
    placement: Method = "modality"
    """``modality``: by the share of an expert's tokens that are visual. ``contiguous``: by number, as without a map.
    ``random``: shuffled. ``balanced``: packed by load. ``eplb``: packed by load, with copies of busy experts.
    ``solved``: least traffic under a limit on the busiest device's load."""
    homes: Homes = "sample"
    """Where tokens live whose experts are called. ``sample``: prompts are dealt out to devices. ``modality``: visual
    tokens on half of the devices, text on the others."""
    copies: Annotated[int, Field(ge=0)] = 0
    """Slots for second copies of experts in each layer, over all devices; for ``eplb`` alone."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.05
    """For ``solved``: the load of the busiest device above the mean, as a fraction."""
    seed: int = 0
    """Shuffles a ``random`` placement."""

    @model_validator(mode="after")
    def _consistent(self) -> ExpertPlacement:
        if self.copies and self.placement != "eplb":
            raise ValueError(f"copies of experts are for placement: eplb, not for {self.placement}")
        if self.homes == "modality" and self.devices < 2:
            raise ValueError("homes: modality needs at least 2 devices")
        return self

    def problem(self, experts: int) -> str | None:
        """Say why so many experts cannot be placed on the devices; None where they can."""
        if (experts + self.copies) % self.devices == 0:
            return None
        slots = f"{experts} experts" + (f" and {self.copies} copies" if self.copies else "")
        return f"{self.devices} devices do not divide {slots}; give a number that does"

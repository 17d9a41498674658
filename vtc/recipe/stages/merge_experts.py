"""`merge_experts` in a recipe."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, model_validator

from vtc.recipe.stages.base import Place, StageEntry
from vtc.recipe.values import Experts

Member = tuple[int, float]
"""An expert, and its share of the merged weights."""
Layers = tuple[tuple[tuple[Member, ...], ...], ...]
"""By layer and group, its members."""


def _groups(value: object) -> Layers | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        layers = tuple(
            tuple(tuple((_expert(expert), _share(share)) for expert, share in group) for group in layer)
            for layer in value  # type: ignore[attr-defined]
        )
    except (TypeError, ValueError):
        layers = ()
    if not layers or not all(group for layer in layers for group in layer):
        raise ValueError(
            "is auto or for each layer a list of groups of [expert, share], such as [[[0, 0.7], [3, 0.3]], [[1, 1]]], "
            f"not {reprlib.repr(value)}"
        )
    for number, layer in enumerate(layers):
        if len(layer) != len(layers[0]):
            raise ValueError("lists equally many groups for each layer")
        members = sorted(expert for group in layer for expert, _ in group)
        if members != list(range(sum(map(len, layers[0])))):
            raise ValueError(f"lists each expert of a layer once, and layer {number} does not")
        if any(not math.isclose(sum(share for _, share in group), 1.0, abs_tol=1e-4) for group in layer):
            raise ValueError(f"has shares that sum to 1 in each group, and layer {number} does not")
    return layers


def _expert(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _share(value: object) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError
    return float(value)  # type: ignore[arg-type]


GroupsOrAuto = Annotated[Layers | Literal["auto"], BeforeValidator(_groups)]


class MergeExpertsEntry(StageEntry):
    """Merge experts of a mixture whose outputs are alike, into equally many in each decoder layer.

    The routers stay as they are: what chose an expert is sent to the group that it went into. Merging gives up what
    routers could tell apart, so it is for a quarter of the experts rather than for half. Experts are dropped before it,
    not after.

    Based on HC-SMoE (arXiv 2410.08589).
    """

    summary = "merge experts of a mixture whose outputs are alike"
    acts = Place.WEIGHTS
    needs_experts = True
    guides: ClassVar[Mapping[str, str]] = {"groups": "keep"}
    kind: Literal["merge_experts"] = "merge_experts"
    keep: Experts | None = None
    """Experts of a layer that are left: a number, or a share; goes with ``groups: auto`` and is required there."""
    linkage: Literal["average", "single", "complete"] = "average"
    """How far two groups are apart: mean, least or largest distance of the mean outputs of their experts."""
    groups: GroupsOrAuto = "auto"
    """For each decoder layer its groups, each expert with its share of the merged weights; ``auto`` leaves the choice
    to calibration, which shares by how often an expert is chosen."""

    @model_validator(mode="after")
    def _consistent(self) -> MergeExpertsEntry:
        if self.groups == "auto" and self.keep is None:
            raise ValueError("groups: auto needs keep, the number of experts of a layer that are left")
        if self.groups != "auto" and self.keep is not None:
            raise ValueError("keep is only for groups: auto, the lists already say how many")
        return self

    @property
    def deed(self) -> str:
        return "merging experts"

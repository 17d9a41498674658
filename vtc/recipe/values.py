"""The values that stand in a recipe: numbers of tokens, layers, fractions, each with its own words when it is wrong."""

from __future__ import annotations

import reprlib
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _keep(value: object) -> int | float:
    if type(value) is int:
        if value < 1:
            raise ValueError(f"must keep at least 1 token, not {value}")
        return value
    if type(value) is float:
        if not 0.0 < value < 1.0:
            raise ValueError(
                f"a fraction lies between 0 and 1, {value} does not; a number of tokens has no decimal point"
            )
        return value
    raise ValueError(f"is a number of tokens such as 64 or a fraction such as 0.25, not {reprlib.repr(value)}")


def _experts(value: object) -> int | float:
    if type(value) is int and value >= 1:
        return value
    if type(value) is float and 0.0 < value < 1.0:
        return value
    raise ValueError(f"is a number of experts such as 4 or a fraction such as 0.5, not {reprlib.repr(value)}")


def experts_left(keep: int | float, experts: int) -> int:
    """Return how many of the experts of a layer a number or a share of them leaves."""
    return max(1, round(keep * experts)) if isinstance(keep, float) else keep


def _kept_experts(value: object) -> tuple[tuple[int, ...], ...] | Literal["auto"]:
    if value == "auto":
        return "auto"
    good = isinstance(value, list | tuple) and value and all(isinstance(one, list | tuple) and one for one in value)
    if not good or any(type(item) is not int or item < 0 for one in value for item in one):  # type: ignore[attr-defined]
        raise ValueError(f"is auto or for each layer a list of experts such as [0, 3], not {reprlib.repr(value)}")
    layers = tuple(tuple(one) for one in value)  # type: ignore[attr-defined]
    if any(list(one) != sorted(set(one)) for one in layers):
        raise ValueError("lists the experts of a layer in ascending order, each once")
    if len({len(one) for one in layers}) > 1:
        raise ValueError("lists equally many experts for each layer")
    return layers


def _keep_or_budgets(value: object) -> int | float | tuple[int, ...]:
    if not isinstance(value, list | tuple):
        return _keep(value)
    numbers = all(type(item) is int and item >= 1 for item in value)
    if len(value) < 2 or not numbers or any(one >= after for one, after in pairwise(value)):
        raise ValueError(f"lists two or more numbers of tokens, ascending, such as [16, 64], not {reprlib.repr(value)}")
    return tuple(value)


def _keep_or_auto(value: object) -> int | float | Literal["auto"]:
    return "auto" if value == "auto" else _keep(value)


def _layer_or_depth(value: object) -> int | float:
    if type(value) is int or (type(value) is float and 0.0 < value < 1.0):
        return value
    raise ValueError(f"is the number of a layer or a depth between 0 and 1, not {reprlib.repr(value)}")


def _ratio(value: object) -> float:
    if type(value) in (int, float) and 1 < value < float("inf"):  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise ValueError(f"is a number above 1, how many times more tokens come before a cut, not {reprlib.repr(value)}")


def _layer_depth_or_auto(value: object) -> int | float | Literal["auto"]:
    if value == "auto":
        return "auto"
    if type(value) is int or (type(value) is float and 0.0 < value < 1.0):
        return value
    raise ValueError(f"is the number of a layer, a depth between 0 and 1, or auto, not {reprlib.repr(value)}")


def _layers(value: object, otherwise: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not value or any(type(item) is not int for item in value):
        raise ValueError(f"is {otherwise}a list of layer numbers such as [3, 4], not {reprlib.repr(value)}")
    repeated = sorted({item for item in value if value.count(item) > 1})
    if repeated:
        raise ValueError(f"layer {repeated[0]} is listed twice")
    return tuple(value)


def _layers_or_auto(value: object) -> tuple[int, ...] | Literal["auto"]:
    return "auto" if value == "auto" else _layers(value, "auto or ")


def _attention_layers(value: object) -> tuple[int, ...] | str:
    if isinstance(value, str) and value in ("feature", "auto"):
        return value
    return _layers([value] if type(value) is int else value, "feature, auto, a layer number or ")


Keep = Annotated[int | float, BeforeValidator(_keep)]
KeepOrBudgets = Annotated[int | float | tuple[int, ...], BeforeValidator(_keep_or_budgets)]
KeepOrAuto = Annotated[int | float | Literal["auto"], BeforeValidator(_keep_or_auto)]
LayerOrDepth = Annotated[int | float, BeforeValidator(_layer_or_depth)]
Ratio = Annotated[float, BeforeValidator(_ratio)]
LayerDepthOrAuto = Annotated[int | float | Literal["auto"], BeforeValidator(_layer_depth_or_auto)]
LayersOrAuto = Annotated[tuple[int, ...] | Literal["auto"], BeforeValidator(_layers_or_auto)]
AttentionLayers = Annotated[tuple[int, ...] | Literal["feature", "auto"], BeforeValidator(_attention_layers)]
Experts = Annotated[int | float, BeforeValidator(_experts)]
KeptExpertsOrAuto = Annotated[tuple[tuple[int, ...], ...] | Literal["auto"], BeforeValidator(_kept_experts)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Multiple = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Positions = Literal["renumber", "original"]


class Written(BaseModel):
    """A part of a recipe: nothing is coerced, nothing unknown is accepted, nothing changes afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)

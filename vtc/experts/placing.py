"""A placement of a model's experts, made from statistics of their use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from vtc.errors import InputError
from vtc.experts.placement import (
    Placement,
    place_balanced,
    place_by_modality,
    place_contiguous,
    place_eplb,
    place_shuffled,
)
from vtc.experts.specialisation import visual_share
from vtc.experts.statistics import ExpertStatistics, ExpertUse, use_digest
from vtc.experts.traffic import expected_calls

Method = Literal["contiguous", "shuffled", "balanced", "eplb", "modality", "solved"]
Homes = Literal["sample", "modality"]
METHODS: tuple[Method, ...] = get_args(Method)


def make_placement(
    statistics: ExpertStatistics,
    method: Method,
    devices: int,
    *,
    tokens: str = "full",
    homes: Homes = "modality",
    copies: int = 0,
    tolerance: float = 0.05,
    seconds: float = 10.0,
    seed: int = 0,
) -> Placement:
    """Place the experts of the model that the statistics are of.

    Parameters
    ----------
    statistics : ExpertStatistics
    method : str
        ``contiguous`` and ``shuffled`` look at nothing, ``balanced`` at load, ``eplb`` too, with copies, ``modality``
        at visual shares, ``solved`` at traffic and load together.
    devices : int
        Divides the experts, and with ``eplb`` their number and copies together.
    tokens : str
        Which of the uses is looked at.
    homes : {"sample", "modality"}
        Where tokens live that ``solved`` places experts for.
    copies : int
        Of ``eplb``.
    tolerance, seconds : float
        Of ``solved``: load of a device above the mean, as a fraction; most time for each layer.
    seed : int
        Of ``shuffled``, and of the solver's starting points.

    Raises
    ------
    InputError
        If the numbers do not divide, there is no such method, or no such use.
    """
    use = statistics.use(tokens)
    layers, experts, load = use.layers, use.experts, use.chosen.sum(axis=1)
    methods: dict[Method, Callable[[], Placement]] = {
        "contiguous": lambda: place_contiguous(layers, experts, devices),
        "shuffled": lambda: place_shuffled(layers, experts, devices, seed),
        "balanced": lambda: place_balanced(load, devices),
        "eplb": lambda: place_eplb(load, devices, copies),
        "modality": lambda: place_by_modality(visual_share(use.chosen), devices),
        "solved": lambda: _solved(use, devices, homes, tolerance, seconds, seed),
    }
    if method not in methods:
        raise InputError(f"no method '{method}' to place experts; there are {', '.join(METHODS)}")
    if copies and method != "eplb":
        raise InputError(f"copies of experts are made by eplb alone, not by {method}")
    return replace(methods[method](), model=statistics.model, statistics=use_digest(use))


def _solved(use: ExpertUse, devices: int, homes: Homes, tolerance: float, seconds: float, seed: int) -> Placement:
    from vtc.experts.solving import place_near_homes, place_together  # scipy, which the light install lacks

    if homes == "modality":
        solved = place_near_homes(expected_calls(use.chosen, devices), devices, tolerance, seconds)
    else:
        solved = place_together(use.together.sum(axis=1), use.chosen.sum(axis=1), devices, tolerance, seed)
    bound = "no bound known" if np.isnan(solved.gap).any() else f"gap at most {solved.gap.max():.2%}"
    return replace(solved.placement, method=f"{solved.placement.method}, {bound}")

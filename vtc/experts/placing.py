"""From expert use to a placement by any method, and all methods side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from vtc.errors import InputError
from vtc.experts.placement import (
    ExpertMap,
    place_balanced,
    place_by_modality,
    place_contiguous,
    place_eplb,
    place_shuffled,
)
from vtc.experts.solving import align_devices, place_near_homes, place_together
from vtc.experts.specialisation import visual_share
from vtc.experts.statistics import ExpertUse, Floats, Numbers, Routes, use_digest
from vtc.experts.traffic import (
    Replay,
    calls_by_home,
    expected_calls,
    homes_by_modality,
    homes_by_sample,
    replay,
)
from vtc.recipe.experts import METHODS, ExpertPlacement, Homes, Method


def place(use: ExpertUse, wanted: ExpertPlacement, model: str = "") -> ExpertMap:
    """Place experts as a recipe says.

    Which device has which group of experts is chosen so that most calls are local.

    Parameters
    ----------
    use : ExpertUse
    wanted : ExpertPlacement
    model : str
        Digest of the checkpoint.

    Raises
    ------
    InputError
        If devices do not divide the experts.
    """
    if problem := wanted.problem(use.experts):
        raise InputError(problem)
    load = use.chosen.sum(axis=1)
    if wanted.homes == "modality":
        pairs = expected_calls(use.chosen, wanted.devices)
    else:
        pairs = calls_by_home(use.routes, homes_by_sample(use.routes, wanted.devices), use.experts, wanted.devices)
    methods: dict[Method, Callable[[], ExpertMap]] = {
        "modality": lambda: place_by_modality(visual_share(use.chosen), wanted.devices),
        "contiguous": lambda: place_contiguous(use.layers, use.experts, wanted.devices),
        "random": lambda: place_shuffled(use.layers, use.experts, wanted.devices, wanted.seed),
        "balanced": lambda: place_balanced(load, wanted.devices),
        "eplb": lambda: place_eplb(load, wanted.devices, wanted.copies),
        "solved": lambda: _solved(use, wanted, pairs),
    }
    placement = methods[wanted.placement]()
    if wanted.placement not in ("contiguous", "random") and not placement.has_copies:
        placement = align_devices(placement, pairs)
    return replace(placement, model=model, statistics=use_digest(use))


def homes_of(routes: Routes, wanted: ExpertPlacement) -> Numbers:
    """Home (T,) of each token, as a recipe says."""
    return (
        homes_by_sample(routes, wanted.devices)
        if wanted.homes == "sample"
        else homes_by_modality(routes, wanted.devices)
    )


def compare(use: ExpertUse, wanted: ExpertPlacement) -> Iterator[tuple[Method, Homes, Replay]]:
    """Traffic and load of each method under both kinds of homes, placed by half of the prompts, counted on the others.

    Parameters
    ----------
    use : ExpertUse
    wanted : ExpertPlacement
        Says devices, copies and the like.
    """
    fitted, counted = halves(use)
    kinds: tuple[Homes, ...] = ("sample", "modality") if wanted.devices > 1 else ("sample",)
    for homes in kinds:
        for method in METHODS:
            copies = wanted.copies if method == "eplb" else 0
            one = wanted.model_copy(update={"placement": method, "homes": homes, "copies": copies})
            yield method, homes, replay(counted, place(fitted, one), homes_of(counted, one))


def halves(use: ExpertUse) -> tuple[ExpertUse, Routes]:
    """What every other prompt tells of the use of experts, by its routes alone, and the routes of the others."""
    routes = use.routes
    even = routes.sample % 2 == 0
    first, second = (
        Routes(routes.chosen[:, own], routes.modality[own], routes.sample[own] // 2) for own in (even, ~even)
    )
    if not len(first.sample) or not len(second.sample):
        raise InputError("expert statistics of one prompt cannot be split into two halves; measure more samples")
    picked = (first.chosen[..., None] == np.arange(use.experts)).any(axis=2).astype(np.float64)
    kinds = np.eye(2)[first.modality]
    together = np.einsum("lte,ltf,tm->lmef", picked, picked, kinds, optimize=True)
    chosen = np.einsum("lte,tm->lme", picked, kinds)
    return replace(use, tokens=kinds.sum(axis=0), chosen=chosen, together=together, routes=first), second


def _solved(use: ExpertUse, wanted: ExpertPlacement, pairs: Floats) -> ExpertMap:
    """Homes by modality make it a question of homes; homes by sample, of what is chosen together."""
    if wanted.homes == "modality":
        solved = place_near_homes(pairs, wanted.devices, wanted.tolerance)
    else:
        load = use.chosen.sum(axis=1)
        solved = place_together(use.together.sum(axis=1), load, wanted.devices, wanted.tolerance, wanted.seed)
    bound = "no bound known" if np.isnan(solved.gap).any() else f"gap at most {solved.gap.max():.2%}"
    return replace(solved.placement, method=f"{solved.placement.method}, {bound}")

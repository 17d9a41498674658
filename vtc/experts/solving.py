"""Placements that weigh traffic against load, by solvers of scipy.

Where each token's home is known before experts are placed, as with homes by modality, the calls that leave their home
are a linear function of the placement: an assignment with limits on load, which HiGHS solves to a proven gap. Where
homes are dealt out by prompt every device has the same mix of tokens, no expert is nearer to one of them, and what a
placement can save is devices per token, by putting together what is chosen together: a quadratic assignment, which
FAQ and 2-opt solve well without a bound. As an integer program it has no useful bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp, quadratic_assignment

from vtc.errors import InputError
from vtc.experts.eplb import balanced_packing
from vtc.experts.placement import ExpertMap, place_on_devices
from vtc.experts.statistics import Floats, Numbers

TWO_OPT_EXPERTS = 64
"""Most experts for which 2-opt goes on from FAQ: it takes half a second for 64 of them and 20 for 128."""
_PENALTIES = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0)
"""Of squared loads, against co-choice; the least that keeps the limit is wanted, and all are tried."""


@dataclass(frozen=True)
class Solved:
    """A placement, and how good it is known to be.

    Attributes
    ----------
    placement : ExpertMap
    gap : array of shape (L,)
        By how much, as a fraction, the objective may be above the least possible one. NaN: no bound is known.
    limit : array of shape (L,)
        Largest load of a device over the mean that was allowed. It is above what was asked where packing by load
        alone does not get there.
    seconds : float
    """

    placement: ExpertMap
    gap: Floats
    limit: Floats
    seconds: float


def place_near_homes(pairs: Floats, devices: int, tolerance: float = 0.05, seconds: float = 10.0) -> Solved:
    """Fewest calls of experts that leave their token's home, with a limit on each device's load.

    Parameters
    ----------
    pairs : array of shape (L, E, devices)
        Calls of each expert by tokens whose home is a device.
    devices : int
        Divides E.
    tolerance : float
        Largest load of a device above the mean, as a fraction.
    seconds : float
        Most time for each layer; HiGHS may take somewhat longer to stop.
    """
    start = time.perf_counter()
    load = pairs.sum(axis=2)
    packed, limit = _packed(load, devices, tolerance)
    found, gaps = [], []
    for layer, (calls, total) in enumerate(zip(pairs, load, strict=True)):
        device, gap = _assign(total[:, None] - calls, total, limit[layer] * total.sum() / devices, seconds)
        found.append(packed[layer] if device is None else device)
        gaps.append(gap)
    placement = place_on_devices(np.stack(found), devices, f"solved for homes by modality, load +{tolerance:.0%}")
    return Solved(placement, np.array(gaps), limit, time.perf_counter() - start)


def place_together(together: Floats, load: Floats, devices: int, tolerance: float = 0.05, seed: int = 0) -> Solved:
    """Experts that are chosen together on one device, with a limit on each device's load.

    Squared loads are a sum over pairs of experts on one device, as co-choice is, so that a penalty on them keeps the
    problem a quadratic assignment. Of several penalties the placement with the most co-choice inside devices is taken
    that keeps the limit; if none does, packing by load alone.

    Parameters
    ----------
    together : array of shape (L, E, E)
        Tokens that chose both of two experts.
    load : array of shape (L, E)
    devices, tolerance
        As in :func:`place_near_homes`.
    seed : int
        Of the solver's starting points.

    Notes
    -----
    Based on "Fast Approximate Quadratic Programming for Graph Matching" (Vogelstein et al. 2015).
    """
    start = time.perf_counter()
    packed, limit = _packed(load, devices, tolerance)
    found = []
    for layer, device in enumerate(packed):
        total, most = load[layer].sum(), limit[layer] * load[layer].sum() / devices
        pairs = together[layer] * (1 - np.eye(load.shape[1]))
        pairs = pairs / max(pairs.sum(), 1)
        best, inside = device, _inside(pairs, device)
        for penalty in _PENALTIES:
            share = load[layer] / max(total, 1)
            tried = _group(pairs - penalty * np.outer(share, share), devices, seed)
            if np.bincount(tried, load[layer], devices).max() <= most and _inside(pairs, tried) > inside:
                best, inside = tried, _inside(pairs, tried)
        found.append(best)
    placement = place_on_devices(np.stack(found), devices, f"solved for homes by prompt, load +{tolerance:.0%}")
    return Solved(placement, np.full(len(load), np.nan), limit, time.perf_counter() - start)


def align_devices(placement: ExpertMap, pairs: Floats) -> ExpertMap:
    """The same placement with the devices of each layer renamed so that most calls of experts are local.

    Which experts share a device, and the loads, stay.

    Parameters
    ----------
    placement : ExpertMap
    pairs : array of shape (L, E, devices)
        Calls of each expert by tokens whose home is a device.
    """
    rows = placement.expert_of_slot.reshape(placement.layers, placement.devices, placement.room).copy()
    for layer, row in enumerate(rows):
        local = np.stack([pairs[layer][group].sum(axis=0) for group in row])  # by group and by home
        group, name = linear_sum_assignment(local, maximize=True)
        rows[layer, name] = row[group]
    aligned = rows.reshape(placement.layers, placement.slots)
    return replace(placement, expert_of_slot=aligned, method=f"{placement.method}, aligned")


def _packed(load: Floats, devices: int, tolerance: float) -> tuple[Numbers, Floats]:
    """Devices (L, E) by load alone, and the limit (L,) that can be kept."""
    if tolerance < 0:
        raise InputError(f"a tolerance of {tolerance:.0%} is below the mean load; give 0 or more")
    device, _ = balanced_packing(load, devices)
    most = np.array([np.bincount(d, row, devices).max() for d, row in zip(device, load, strict=True)])
    return device, np.maximum(1 + tolerance, most * devices / np.maximum(load.sum(axis=1), 1)) * (1 + 1e-9)


def _assign(cost: Floats, load: Floats, most: float, seconds: float) -> tuple[Numbers | None, float]:
    """Devices (E,) of least cost (E, devices) under a limit of load, and the gap; None if none is found in time."""
    experts, devices = cost.shape
    one_each = sparse.kron(sparse.eye(experts), np.ones((1, devices)))
    full = sparse.kron(np.ones((1, experts)), sparse.eye(devices))
    loads = sparse.kron(load[None], sparse.eye(devices))
    rows = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(full, experts // devices, experts // devices),
        LinearConstraint(loads, -np.inf, most),
    ]
    options = {"time_limit": seconds}
    result = milp(cost.ravel(), constraints=rows, integrality=1, bounds=Bounds(0, 1), options=options)
    if result.x is None:
        return None, float("nan")
    return result.x.reshape(experts, devices).argmax(axis=1), float(result.mip_gap)


def _group(pairs: Floats, devices: int, seed: int) -> Numbers:
    """Devices (E,) of equally many experts with much of a symmetric matrix (E, E) inside them."""
    experts = len(pairs)
    blocks = np.kron(np.eye(devices), np.ones((experts // devices, experts // devices)))
    generator = np.random.default_rng(seed)
    results = [
        quadratic_assignment(pairs, blocks, "faq", {"maximize": True, "rng": generator, "P0": first})
        for first in ("barycenter", "randomized", "randomized")
    ]
    best = max(results, key=lambda result: result.fun)
    if experts <= TWO_OPT_EXPERTS:
        guess = np.stack([np.arange(experts), best.col_ind], axis=1)
        options = {"maximize": True, "rng": generator, "partial_guess": guess}
        best = quadratic_assignment(pairs, blocks, "2opt", options)
    return np.asarray(best.col_ind // (experts // devices), np.int64)


def _inside(pairs: Floats, device: Numbers) -> float:
    return float(pairs[device[:, None] == device].sum())

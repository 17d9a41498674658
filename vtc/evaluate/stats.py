"""Intervals by the paired bootstrap, with a fixed seed.

Every figure here is a ratio of two sums over the same items: an accuracy is right answers over items, a
retention is right answers of one model over right answers of the other, a mean divergence is divergence over
tokens. Resampling draws *images*, not questions: questions about one image are not independent, and
pretending so makes intervals too narrow.

Based on Efron & Tibshirani 1993, "An Introduction to the Bootstrap" (percentile interval, chapter 13), and
Field & Welsh 2007, "Bootstrapping clustered data" (resampling whole clusters).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK = 2_000_000
"""Indices drawn at a time, so that memory does not grow with the data."""


def group_sums(values: ArrayLike, groups: Sequence[Hashable]) -> Floats:
    """Sum the rows of `values` that belong to the same group.

    Parameters
    ----------
    values : array of shape (n, columns)
    groups : sequence of n hashables

    Returns
    -------
    array of shape (number of groups, columns)
        In order of first appearance.
    """
    table = np.asarray(values, dtype=np.float64)
    order: dict[Hashable, int] = {}
    places = [order.setdefault(group, len(order)) for group in groups]
    sums = np.zeros((len(order), table.shape[1]))
    np.add.at(sums, places, table)
    return sums


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> float | None:
    """Sum of `numerator` over sum of `denominator`; None where the latter is zero."""
    below = float(np.sum(denominator))
    return float(np.sum(numerator)) / below if below else None


def _draws(count: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    for start in range(0, resamples, rows):
        yield rng.integers(0, count, (min(rows, resamples - start), count))


def _percentiles(values: Floats) -> Interval | None:
    usable = values[np.isfinite(values)]
    if usable.size == 0:
        return None
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    groups: Sequence[Hashable],
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """95 % bootstrap interval of a ratio of sums.

    Parameters
    ----------
    numerator, denominator : arrays of shape (n,)
        Per item; paired, so both are resampled together.
    groups : sequence of n hashables
        The image of each item. Items of one image are drawn together.
    seed : int
    resamples : int

    Returns
    -------
    (low, high) or None
        None where every resample has a zero denominator, or there is no item. Single resamples with a zero
        denominator say nothing about the ratio and are left out.
    """
    table = np.stack([np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)], axis=1)
    if len(table) == 0:
        return None
    sums = group_sums(table, groups)
    drawn = np.concatenate([sums[indices].sum(axis=1) for indices in _draws(len(sums), resamples, seed)])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[:, 0] / drawn[:, 1]
    return _percentiles(ratios)


def mean_interval(
    values: ArrayLike, groups: Sequence[Hashable], seed: int, resamples: int = RESAMPLES
) -> Interval | None:
    """95 % bootstrap interval of a mean; see :func:`ratio_interval`."""
    return ratio_interval(values, np.ones(len(groups)), groups, seed, resamples)


def median_ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike, seed: int, resamples: int = RESAMPLES
) -> Interval | None:
    """95 % bootstrap interval of the ratio of two medians of paired measurements of shape (n,)."""
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if above.size == 0:
        return None
    ratios = [
        np.median(above[indices], axis=1) / np.median(below[indices], axis=1)
        for indices in _draws(above.size, resamples, seed)
    ]
    return _percentiles(np.concatenate(ratios))


def least_images(min_retention: float) -> int:
    """Images below which not even a flawless result shows a retention of at least `min_retention`.

    A bootstrap of n flawless pairs has an interval of no width, however small n is. A model that loses a
    share p of the answers still gets n of n right with probability (1 - p)^n; that must be below the
    interval's tail of 2.5 %.

    Based on Hanley & Lippman-Hand 1983, "If nothing goes wrong, is everything all right?" (the rule of
    three).

    Parameters
    ----------
    min_retention : float in [0, 1)

    Returns
    -------
    int
    """
    if min_retention <= 0:
        return 1
    return math.ceil(math.log((1 - LEVEL) / 2) / math.log(min_retention))


def median_p90(values: ArrayLike) -> dict[str, float | None]:
    """Median and 90th percentile as ``{"p50", "p90"}``; None where there is no value."""
    array = np.asarray(values, np.float64)
    if array.size == 0:
        return {"p50": None, "p90": None}
    p50, p90 = np.quantile(array, [0.5, 0.9])
    return {"p50": float(p50), "p90": float(p90)}


def listed(interval: Interval | None) -> list[float] | None:
    """An interval as plain JSON."""
    return None if interval is None else list(interval)

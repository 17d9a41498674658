"""The best set of experts to drop from a layer, found by trying every one: what other rules are measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from vtc.errors import InputError
from vtc.experts.statistics import Floats, Numbers
from vtc.recipe.stages.prune_experts import MOST_SETS


@dataclass(frozen=True)
class Enumeration:
    """Loss of each set of dropped experts.

    Attributes
    ----------
    dropped : array of shape (C, r), int64
        Sets, each ascending, in lexicographic order.
    loss : array of shape (C,)
        Sum over sequences of the Frobenius norm of the difference from the whole layer's output.
    """

    dropped: Numbers
    loss: Floats

    @property
    def best(self) -> Numbers:
        """Set (r,) with the least loss; of equals the first."""
        return np.asarray(self.dropped[int(np.argmin(self.loss))])

    def excess(self, dropped: Numbers) -> float:
        """How much more another set (r,) loses than the best, as a fraction."""
        row = np.flatnonzero((self.dropped == np.sort(dropped)).all(axis=1))
        if len(row) != 1:
            raise InputError(f"experts {list(dropped)} are none of the {len(self.dropped)} sets that were tried")
        return float(self.loss[row[0]] / self.loss.min() - 1) if self.loss.min() > 0 else 0.0


def layer_output(
    outputs: Floats, logits: Floats, active: int, dropped: Numbers | None = None, *, sum_to_one: bool = True
) -> Floats:
    """Output of a layer whose router takes the softmax, and of that the `active` highest.

    Parameters
    ----------
    outputs : array of shape (E, N, D)
        What each expert makes of each token.
    logits : array of shape (N, E)
        The router's.
    active : int
        Experts that a token passes, k.
    dropped : array of shape (r,), int64, or None
        Experts that cannot be chosen.
    sum_to_one : bool
        Whether the router then divides the highest by their sum.

    Returns
    -------
    array of shape (N, D)
    """
    left = logits.astype(np.float64)
    if dropped is not None:
        left[:, dropped] = -np.inf
    active = min(active, outputs.shape[0] - (0 if dropped is None else len(dropped)))
    chosen = np.argsort(-left, axis=1, kind="stable")[:, :active]
    share = np.exp(left - left.max(axis=1, keepdims=True))
    weight = np.take_along_axis(share, chosen, 1)
    weight /= (weight if sum_to_one else share).sum(axis=1, keepdims=True)
    return np.asarray(np.einsum("nk,nkd->nd", weight, outputs[chosen, np.arange(len(chosen))[:, None]]))


def enumerate_drops(
    reduced: Callable[[Numbers], NDArray[np.floating]], full: NDArray[np.floating], experts: int, drop: int
) -> Enumeration:
    """Try every set of `drop` experts.

    Parameters
    ----------
    reduced : callable
        Output of the layer without a set of experts, which it gets as an array (r,) of ascending indices.
    full : array of shape (sequences, ..., D)
        Output of the layer with all of them; `reduced` gives the same shape.
    experts : int
        Of the layer, E.
    drop : int

    Raises
    ------
    InputError
        If there is nothing to choose, or there are more than `MOST_SETS` sets.

    Notes
    -----
    Based on "Not All Experts are Equal" (arXiv 2402.14800).
    """
    if not 0 < drop < experts:
        raise InputError(f"cannot drop {drop} of {experts} experts; drop 1 to {experts - 1}")
    if comb(experts, drop) > MOST_SETS:
        raise InputError(
            f"{drop} of {experts} experts are {comb(experts, drop):.3g} sets, of which at most {MOST_SETS} are "
            "tried; choose by a score, such as reap"
        )
    dropped = np.array(list(combinations(range(experts), drop)), np.int64)
    return Enumeration(dropped, np.array([_distance(full, reduced(each)) for each in dropped]))


def _distance(full: NDArray[np.floating], reduced: NDArray[np.floating]) -> float:
    difference = np.asarray(full, np.float64) - reduced
    return float(np.sqrt(np.square(difference).reshape(len(difference), -1).sum(axis=1)).sum())

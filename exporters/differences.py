"""How far what a bundle computes is from what it should: numbers, and kept tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ANSWER_TOKENS = 16
"""Tokens of an answer that are compared, at most."""


class Moved(NamedTuple):
    """Of one image, how many other tokens were kept than should be, and what share of all that is."""

    others: int
    share: float


def moves(ours: NDArray[Any], theirs: NDArray[Any]) -> list[Moved]:
    """For each image how many of their tokens (images, K) are not among ours."""
    counts = [len(set(b) - set(a)) for a, b in zip(ours, theirs, strict=True)]
    return [Moved(count, count / max(theirs.shape[1], 1)) for count in counts]


def largest(difference: NDArray[Any]) -> float:
    """Largest magnitude, infinity where something is not a number, as what overflows ends up."""
    return float(np.nan_to_num(np.abs(difference), nan=np.inf).max(initial=0.0))

"""Batches of prompts, of which only the place of each token counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IMAGE = 9
"""Token id of the placeholder."""


def batch(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and mask (B, S) of left-padded prompts."""
    longest = max(map(len, rows))
    ids = np.array([[0] * (longest - len(row)) + list(row) for row in rows], dtype=np.int64)
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=np.int64)
    return ids, mask

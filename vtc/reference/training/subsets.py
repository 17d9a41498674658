"""Which visual tokens a training sequence or a yardstick keeps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vtc.reference.training.packing import VISUAL_TOKENS

#: Numbers of visual tokens met in training, besides all of them.
BUDGETS = (12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 192)


def covering_subset(owner: NDArray[np.int64], keep: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random subset that keeps something of every glyph.

    Parameters
    ----------
    owner : array of shape (256,)
        Index of each patch's glyph, -1 for none.
    keep : int
        Size of the subset, at least the number of glyphs.
    rng : numpy Generator

    Returns
    -------
    array of shape (keep,)
        Ascending indices.
    """
    priority = rng.random(VISUAL_TOKENS)
    if rng.random() < 0.5:
        # Prefer objects to background, as a good selector would.
        priority[owner >= 0] -= rng.random()
    share = max(1, keep // max(1, int(owner.max()) + 1))
    for glyph in range(int(owner.max()) + 1):
        mine = np.flatnonzero(owner == glyph)
        some = rng.permutation(mine)[: int(rng.integers(1, min(share, 3) + 1))]
        priority[some] -= 4.0
    return np.sort(np.argsort(priority, kind="stable")[:keep])


def oracle_subset(owner: NDArray[np.int64], share: NDArray[np.float32], keep: int) -> NDArray[np.int64]:
    """The best-covered patches of all glyphs, in turns; it knows the objects but not the question.

    Returns
    -------
    array of shape (keep,)
        Ascending indices.
    """
    rank = np.full(VISUAL_TOKENS, 1e6)
    for glyph in range(int(owner.max()) + 1):
        mine = np.flatnonzero(owner == glyph)
        rank[mine[np.argsort(-share[mine], kind="stable")]] = np.arange(len(mine)) + 0.01 * glyph
    return np.sort(np.argsort(rank, kind="stable")[:keep])


def uniform_subset(keep: int) -> NDArray[np.int64]:
    """Evenly spaced indices, shape (keep,)."""
    return ((np.arange(keep) + 0.5) * VISUAL_TOKENS / keep).astype(np.int64)

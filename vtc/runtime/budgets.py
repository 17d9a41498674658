"""Which of a bundle's budgets of visual tokens a question gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtc.errors import InputError


@dataclass(frozen=True)
class Entropy:
    """Ask at the smallest budget, and again at the next as long as the answer's first token is uncertain.

    What each pass costs is spent in full: nothing of one is used by the next.

    Attributes
    ----------
    threshold : float
        In nats: the entropy of the first token's distribution above which the next budget is tried.
    budgets : tuple of int
        Those that are tried, ascending; all that there are where none is named.
    """

    threshold: float
    budgets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no entropy is."""
        if not 0 <= self.threshold < float("inf"):
            raise InputError(f"an entropy is 0 nats or more, and finite, not {self.threshold}")
        if list(self.budgets) != sorted(set(self.budgets)):
            raise InputError(f"budgets are tried in ascending order, not {', '.join(map(str, self.budgets))}")

    def of(self, available: Sequence[int]) -> Sequence[int]:
        """The budgets that are tried of those that a model has.

        Raises
        ------
        InputError
            If the model has one budget for all questions.
        """
        if not available:
            raise InputError("there is one budget for all questions here, and nothing to choose from")
        return self.budgets or available


Keep = int | Entropy | None
"""One budget for all questions, a policy, or None for the largest."""


def entropies(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Entropy in nats of each distribution.

    Parameters
    ----------
    logits : array of shape (B, V)

    Returns
    -------
    array of shape (B,)
    """
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(axis=-1)
    spread: NDArray[np.float64] = np.log(total) - (weights * np.where(weights > 0, shifted, 0)).sum(axis=-1) / total
    return spread

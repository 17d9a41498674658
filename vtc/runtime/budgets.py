"""Which of a bundle's budgets of visual tokens a question gets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vtc.errors import InputError


class Pass(Protocol):
    """A prompt, or a batch of them, that was run at one budget."""

    @property
    def entropies(self) -> Sequence[float]:
        """Of each row's first token, in nats."""


P = TypeVar("P", bound=Pass)


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

    def passes(self, available: Sequence[int], ask: Callable[[int], P], looks: bool = True) -> list[P]:
        """Ask at one budget after the other until the answer is certain enough; the last pass answers.

        Parameters
        ----------
        available : sequence of int
            Budgets that the model has, ascending.
        ask : callable
            From a budget to a pass.
        looks : bool
            Whether there is an image to look at: if not, no budget is better than another.

        Returns
        -------
        list
            All passes, in order. A batch is certain if its least certain row is.
        """
        passes: list[P] = []
        for budget in self.of(available):
            passes.append(ask(budget))
            if not looks or max(passes[-1].entropies) <= self.threshold:
                break
        return passes


Keep = int | Entropy | None
"""One budget for all questions, a policy, or None for the largest."""


def no_budget(model: str, keep: int, budgets: Collection[int]) -> InputError:
    """What is wrong where a model has no budget of `keep`."""
    these = f"it has {', '.join(map(str, budgets))}" if budgets else "it has one for all questions"
    return InputError(f"{model}: has no budget of {keep} visual tokens; {these}")


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

"""The next token from logits: the best one, or one drawn at a temperature from the most likely."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from vtc.errors import InputError
from vtc.inputs.generation import check_finite

_LEAST = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0)
"""Shares, against the likeliest token's, of the tokens that are put in order to draw one; the next where too few."""

_ROUNDING = 1e-9
"""How much more they hold than what is wanted of them: sums in another order differ by less."""


@dataclass
class Sampler:
    """Chooses tokens.

    Attributes
    ----------
    temperature : float
        0 takes the best token (of equals, the lowest id).
    top_p : float
        Draw from the smallest set of tokens that holds at least this much probability (nucleus sampling,
        Holtzman et al. 2020, arXiv 1904.09751).
    seed : int or None
        The same seed, prompt and batch give the same answer; None draws afresh.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed must be 0 or more, not {self.seed}")
        self._random = np.random.default_rng(self.seed)

    def __call__(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """Token ids (B,) from logits (B, V).

        Raises
        ------
        NumericError
            If they are not numbers.
        """
        best: NDArray[np.int64] = logits.argmax(axis=-1).astype(np.int64, copy=False)
        if not all(map(isfinite, [row[token] for row, token in zip(logits, best.tolist(), strict=True)])):
            check_finite(logits)  # which names the fault
        if self.temperature == 0:
            return best
        return np.array([self._draw(row) for row in logits], dtype=np.int64)

    def _draw(self, logits: NDArray[np.float32]) -> int:
        share = logits.astype(np.float64)
        share -= share.max()
        with np.errstate(over="ignore", under="ignore"):  # far behind, or at a very low temperature: never
            share /= self.temperature
            np.exp(share, out=share)
        share /= share.sum()
        drawn, most = self._random.random(), share.max()
        wanted = self.top_p if self.top_p < 1 else drawn
        # Only the likeliest are put in order: as many as hold the nucleus, or the place that was drawn.
        for least in _LEAST:
            order = np.flatnonzero(share >= least * most)
            if share[order].sum() > wanted + _ROUNDING:
                break
        order = order[np.argsort(-share[order], kind="stable")]
        sums = np.cumsum(share[order])
        share[order] = 0
        whole = sums[-1] + share.sum()
        if self.top_p < 1:
            sums = sums[: np.searchsorted(sums, self.top_p * whole) + 1]
            whole = sums[-1]
        return int(order[min(np.searchsorted(sums, drawn * whole, side="right"), len(sums) - 1)])

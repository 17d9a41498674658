"""Tokens that are drawn are those of nucleus sampling written out in full, draw for draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vtc.errors import NumericError
from vtc.runtime.sampling import Sampler

Array = np.ndarray[Any, Any]


def drawn(logits: Array, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """Every token put in order, the nucleus cut, and one chosen of it."""
    share = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    share /= share.sum()
    order = np.argsort(-share, kind="stable")
    sums = np.cumsum(share[order])
    nucleus = share[order[: int(np.searchsorted(sums, top_p * sums[-1])) + 1]]
    return int(order[random.choice(len(nucleus), p=nucleus / nucleus.sum())])


def logits_of(kind: str, words: int) -> Array:
    random = np.random.default_rng(words)
    logits = random.normal(size=(2, words)) * {"flat": 0.1, "steep": 6}.get(kind, 2)
    if kind == "ties":
        logits = np.round(logits)
    if kind == "forbidden":
        logits[:, ::2] = -np.inf
    return logits.astype(np.float32)


@pytest.mark.parametrize("words", [2, 30, 5000])
@pytest.mark.parametrize("kind", ["flat", "steep", "ties", "forbidden"])
def test_draws_are_those_of_every_token_in_order(kind: str, words: int) -> None:
    logits = logits_of(kind, words)
    for temperature in (0.01, 0.7, 1.0, 5.0):
        for top_p in (1e-6, 0.5, 0.9, 0.999, 1.0):
            sampler, random = Sampler(temperature, top_p, seed=words), np.random.default_rng(words)
            for _ in range(4):
                wanted = [drawn(row, temperature, top_p, random) for row in logits]
                assert sampler(logits).tolist() == wanted, (temperature, top_p)


def test_unlikely_tokens_are_drawn_as_often_as_they_should_be() -> None:
    """A tail whose tokens are each a ten-thousandth of the first one, and together as likely."""
    logits = np.full((2000, 10_001), -np.log(10_000), dtype=np.float32)
    logits[:, 0] = 0
    found = Sampler(1.0, seed=0)(logits)
    assert 0.45 < (found == 0).mean() < 0.55
    assert len(np.unique(found)) > 700


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused_wherever_they_are(value: float) -> None:
    logits = np.zeros((2, 9), dtype=np.float32)
    for row, column in ((0, 0), (1, 8)):
        broken = logits.copy()
        broken[row, column] = value
        with pytest.raises(NumericError):
            Sampler()(broken)
        with pytest.raises(NumericError):
            Sampler(1.0)(broken)


def test_of_equals_the_lowest_is_best() -> None:
    assert Sampler()(np.array([[0, 3, 3], [2, 2, 2]], dtype=np.float32)).tolist() == [1, 0]

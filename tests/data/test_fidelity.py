"""Divergence between next-token distributions, against values computed by hand."""

import math

import numpy as np
import pytest

from vtc.data.fidelity import divergence
from vtc.errors import ModelError, NumericError


def logits(*rows: list[float]) -> np.ndarray:
    return np.log(np.array(rows)).astype(np.float32)


def test_kl_divergence_in_nats() -> None:
    moved = divergence(logits([0.5, 0.5]), logits([0.9, 0.1]))
    assert moved.kld[0] == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), abs=1e-6)


def test_equal_distributions_do_not_diverge_whatever_their_offset() -> None:
    original = np.random.default_rng(0).normal(0, 5, (4, 100)).astype(np.float32)
    moved = divergence(original, original + 100)
    assert np.all(moved.kld >= 0)
    assert moved.kld == pytest.approx(np.zeros(4), abs=1e-6)
    assert moved.same_top.all()


def test_top_token_is_compared_position_by_position() -> None:
    moved = divergence(logits([0.6, 0.4], [0.6, 0.4]), logits([0.7, 0.3], [0.3, 0.7]))
    assert moved.same_top.tolist() == [True, False]


def test_extreme_logits_do_not_overflow() -> None:
    moved = divergence(np.array([[1e4, -1e4]], np.float32), np.array([[-1e4, 1e4]], np.float32))
    assert moved.kld[0] == pytest.approx(2e4)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ModelError, match="vocabulary"):
        divergence(np.zeros((2, 10), np.float32), np.zeros((2, 11), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_is_compared_with_nothing(value: float) -> None:
    right, wrong = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    wrong[1, 2] = value
    with pytest.raises(NumericError, match="the original's logits are not numbers"):
        divergence(wrong, wrong)
    with pytest.raises(NumericError, match="the compressed model's logits are not numbers"):
        divergence(right, wrong)

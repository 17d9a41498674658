"""Bootstrap intervals agree with what can be computed by hand."""

import math

import numpy as np
import pytest

from vtc.evaluate import stats


def test_mean_interval_matches_the_binomial_formula() -> None:
    values = np.repeat([1.0, 0.0], [800, 200])
    low, high = stats.mean_interval(values, range(1000), seed=0) or (0.0, 0.0)
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - spread, abs=0.003)
    assert high == pytest.approx(0.8 + spread, abs=0.003)


def test_ratio_interval_matches_the_delta_method() -> None:
    rng = np.random.default_rng(1)
    base = (rng.random(2000) < 0.9).astype(float)
    compressed = np.where(rng.random(2000) < 0.85, base, rng.random(2000) < 0.3).astype(float)
    retention = compressed.sum() / base.sum()
    spread = 1.96 * np.std(compressed - retention * base) / math.sqrt(2000) / base.mean()
    low, high = stats.ratio_interval(compressed, base, range(2000), seed=0) or (0.0, 0.0)
    assert low == pytest.approx(retention - spread, abs=0.003)
    assert high == pytest.approx(retention + spread, abs=0.003)


def test_pairing_makes_the_interval_narrower_than_independent_models_would() -> None:
    rng = np.random.default_rng(2)
    base = (rng.random(500) < 0.7).astype(float)
    shuffled = rng.permutation(base)
    paired = stats.ratio_interval(base, base, range(500), seed=0)
    independent = stats.ratio_interval(shuffled, base, range(500), seed=0)
    assert paired == (1.0, 1.0)
    assert independent is not None
    assert independent[1] - independent[0] > 0.05


def test_questions_about_one_image_count_as_one_piece_of_evidence() -> None:
    rng = np.random.default_rng(3)
    by_image = (rng.random(100) < 0.5).astype(float)
    values, images = np.repeat(by_image, 10), np.repeat(np.arange(100), 10).tolist()
    clustered = stats.mean_interval(values, images, seed=0)
    naive = stats.mean_interval(values, range(1000), seed=0)
    assert clustered is not None
    assert naive is not None
    assert (clustered[1] - clustered[0]) / (naive[1] - naive[0]) == pytest.approx(math.sqrt(10), rel=0.1)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(300):
        base = (rng.random(200) < 0.9).astype(float)
        compressed = base * (rng.random(200) < 0.9)
        low, high = stats.ratio_interval(compressed, base, range(200), seed=trial, resamples=1000) or (
            0.0,
            0.0,
        )
        hits += low <= 0.9 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(5).random(50)
    assert stats.mean_interval(values, range(50), seed=7) == stats.mean_interval(values, range(50), seed=7)
    assert stats.mean_interval(values, range(50), seed=7) != stats.mean_interval(values, range(50), seed=8)


def test_a_ratio_over_nothing_is_undefined() -> None:
    assert stats.ratio([1.0], [0.0]) is None
    assert stats.ratio_interval([0.0, 1.0], [0.0, 0.0], range(2), seed=0) is None
    assert stats.ratio_interval([], [], [], seed=0) is None


def test_memory_stays_bounded_on_long_data(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).random(64)
    whole = stats.mean_interval(values, range(64), seed=0, resamples=500)
    monkeypatch.setattr(stats, "_CHUNK", 64 * 7)
    assert stats.mean_interval(values, range(64), seed=0, resamples=500) == whole


@pytest.mark.parametrize(("retention", "images"), [(0.0, 1), (0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_images_needed_before_flawless_means_something(retention: float, images: int) -> None:
    assert stats.least_images(retention) == images
    if retention:
        assert retention**images < 0.025 <= retention ** (images - 1)


def test_median_ratio_interval_holds_a_known_speedup() -> None:
    rng = np.random.default_rng(7)
    noise = rng.lognormal(0, 0.05, 60)
    low, high = stats.median_ratio_interval(30 * noise, 10 * rng.lognormal(0, 0.05, 60), seed=0) or (0.0, 0.0)
    assert low < 3 < high
    assert high - low < 0.3


def test_median_and_p90() -> None:
    assert stats.median_p90(range(1, 12)) == {"p50": 6.0, "p90": 10.0}
    assert stats.median_p90([]) == {"p50": None, "p90": None}

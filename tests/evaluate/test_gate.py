"""The gate passes, fails, or says that it cannot tell."""

import pytest

from vtc.evaluate.gate import at_least, at_most, overall, retention_check


@pytest.mark.parametrize(
    ("interval", "status"),
    [((0.96, 0.99), "pass"), ((0.95, 0.99), "pass"), ((0.90, 0.94), "fail"), ((0.93, 0.97), "inconclusive")],
)
def test_lower_limit(interval: tuple[float, float], status: str) -> None:
    assert at_least("retention", 0.96, interval, 0.95, images=500).status == status


@pytest.mark.parametrize(
    ("interval", "status"), [((0.1, 0.2), "pass"), ((0.4, 0.5), "fail"), ((0.2, 0.4), "inconclusive")]
)
def test_upper_limit(interval: tuple[float, float], status: str) -> None:
    assert at_most("kld_mean", 0.2, interval, 0.3, images=500).status == status


def test_a_flawless_handful_is_no_proof() -> None:
    check = retention_check(1.0, (1.0, 1.0), 0.95, images=71)
    assert check.status == "inconclusive"
    assert "72" in check.reason
    assert retention_check(1.0, (1.0, 1.0), 0.95, images=72).status == "pass"


def test_one_image_proves_nothing_either_way() -> None:
    assert retention_check(0.0, (0.0, 0.0), 0.95, images=1).status == "inconclusive"
    assert retention_check(0.0, (0.0, 0.0), 0.95, images=10).status == "fail"


def test_an_original_that_knows_nothing_leaves_retention_open() -> None:
    check = retention_check(None, None, 0.95, images=500)
    assert check.status == "inconclusive"
    assert "original" in check.reason


def test_failure_outweighs_doubt_and_doubt_outweighs_success() -> None:
    passed = at_least("a", 1.0, (1.0, 1.0), 0.9, 100)
    failed = at_least("b", 0.1, (0.1, 0.2), 0.9, 100)
    unsure = at_least("c", 0.9, (0.8, 1.0), 0.9, 100)
    assert overall([passed, failed, unsure]) == "fail"
    assert overall([passed, unsure]) == "inconclusive"
    assert overall([passed]) == "pass"

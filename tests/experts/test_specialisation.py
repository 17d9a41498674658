"""Visual shares, bins and the specialisation index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vtc.errors import InputError
from vtc.experts.specialisation import modality_bins, specialisation_index, visual_share

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "smoes_selfmade.npz")


def test_bins_as_in_the_paper() -> None:
    """The paper sorts by the share of text."""
    swapped = np.stack([GOLDEN["count_vision"], GOLDEN["count_text"]])
    share = visual_share(swapped)
    np.testing.assert_allclose(share, GOLDEN["f_spec"], rtol=1e-12)
    np.testing.assert_array_equal(np.argsort(share, kind="stable"), GOLDEN["bin_order"])
    np.testing.assert_array_equal(modality_bins(share, 4), GOLDEN["bin_of_expert"])


def test_share_by_equal_mass_keeps_the_order() -> None:
    chosen = np.random.default_rng(0).integers(1, 50, (3, 2, 8)).astype(float)
    chosen[:, 1] *= 9
    plain, equal = visual_share(chosen), visual_share(chosen, equal_mass=True)
    np.testing.assert_array_equal(np.argsort(plain), np.argsort(equal))
    assert plain.mean() > 0.8
    assert abs(equal.mean() - 0.5) < 0.1


def test_an_expert_that_nobody_chose_is_of_no_modality() -> None:
    assert visual_share(np.array([[0.0, 4, 0], [0, 0, 5]])).tolist() == [0.5, 0, 1]


def test_bins_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="3 does not divide 8"):
        modality_bins(np.zeros(8), 3)


def test_index_from_nothing_to_all() -> None:
    alike = [[5, 1, 3, 7], [50, 10, 30, 70]]
    split = [[5, 1, 0, 0], [0, 0, 30, 70]]
    one = [[5, 1, 3, 7], [0, 0, 0, 0]]
    chosen = np.array([alike, split, one], float)
    np.testing.assert_allclose(specialisation_index(chosen), [0, 1, 0], atol=1e-9)
    bins = np.array([[0, 0, 1, 1]] * 3)
    np.testing.assert_allclose(specialisation_index(chosen, bins), [0, 1, 0], atol=1e-9)
    across = np.array([[0, 1, 0, 1]] * 3)
    assert 0 < specialisation_index(chosen, across)[1] < 0.5


@pytest.mark.parametrize(("equal_mass", "joint"), [(True, [[0.25, 0.25], [0, 0.5]]), (False, [[0.05, 0.05], [0, 0.9]])])
def test_index_by_hand(equal_mass: bool, joint: list[list[float]]) -> None:
    """Text takes either expert alike, visual tokens always the second one."""
    table = np.array(joint)
    independent = table.sum(axis=1, keepdims=True) * table.sum(axis=0)
    some = table > 0
    information = (table[some] * np.log(table[some] / independent[some])).sum()
    expert = table.sum(axis=0)
    entropy = -(expert * np.log(expert)).sum()
    chosen = np.array([[[2.0, 2], [0, 36]]])
    assert specialisation_index(chosen, equal_mass=equal_mass)[0] == pytest.approx(information / entropy)

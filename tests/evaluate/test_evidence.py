"""Evidence kept, patch by patch, on a 4 x 4 grid of 10-pixel patches."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vtc.data.datasets import Item
from vtc.evaluate.evidence import Locator, box_patches, measure_evidence

GRID, SIZE = (4, 4), (40, 40)


def item(*boxes: tuple[float, float, float, float], size: int = 40) -> Item:
    return Item("i", Image.new("RGB", (size, size)), "i", "q", ("a",), "c", evidence=boxes)


def locator(*kept: int) -> Locator:
    return Locator(lambda images, _: np.tile(np.array(kept), (len(images), 1)), GRID, SIZE)


@pytest.mark.parametrize(
    ("box", "patches"),
    [
        ((0, 0, 10, 10), [0]),
        ((0, 0, 20, 10), [0, 1]),
        ((10, 20, 20, 40), [9, 13]),
        ((6, 6, 14, 14), [5]),
        ((36, 36, 40, 40), [15]),
        ((0, 0, 40, 40), list(range(16))),
    ],
)
def test_patches_of_a_box(box: tuple[float, float, float, float], patches: list[int]) -> None:
    assert np.flatnonzero(box_patches(box, GRID, SIZE)).tolist() == patches


def test_recall_counts_patches_and_seen_counts_boxes() -> None:
    items = [item((0, 0, 20, 10), (20, 20, 30, 30)), item((30, 30, 40, 40))]
    found = measure_evidence(locator(0, 10), items, np.array([False, True]), batch_size=1)
    assert found == {
        "recall": pytest.approx((2 / 3 + 0) / 2),
        "recall_of_random": 2 / 16,
        "seen": 0.5,
        "n": 2,
        "lost": 1,
        "lost_unseen": 1,
    }


def test_a_lost_answer_whose_evidence_was_kept_is_the_decoders_fault() -> None:
    found = measure_evidence(locator(0), [item((0, 0, 10, 10))], np.array([True]))
    assert found is not None
    assert (found["lost"], found["lost_unseen"]) == (1, 0)


def test_items_without_usable_evidence_do_not_count() -> None:
    nothing = [item(), item((0, 0, 10, 10), size=80)]
    assert measure_evidence(locator(0), nothing, np.array([False, False])) is None
    found = measure_evidence(locator(0), [*nothing, item((0, 0, 10, 10))], np.zeros(3, bool))
    assert found is not None
    assert found["n"] == 1

"""Positions of text and visual tokens in a batch of prompts."""

from __future__ import annotations

import numpy as np

from tests.inputs.batches import IMAGE, batch
from vtc.inputs.positions import PositionRule, positions


def test_renumbered_positions_count_through() -> None:
    ids, mask = batch([[1, IMAGE, IMAGE, 2], [3, 4]])
    found = positions(ids, mask, IMAGE, np.array([[2, 5]]), PositionRule())
    assert found.ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert found.following.tolist() == [4, 2]


def test_original_positions_keep_the_images_whole_length() -> None:
    ids, mask = batch([[1, IMAGE, IMAGE, 2, IMAGE, IMAGE, 5], [IMAGE, IMAGE, 3]])
    keep = np.array([[2, 5], [0, 7], [1, 3]])
    found = positions(ids, mask, IMAGE, keep, PositionRule("original", 8))
    assert found.ids[0].tolist() == [0, 3, 6, 9, 10, 17, 18]
    assert found.ids[1, 4:].tolist() == [1, 3, 8]
    assert found.following.tolist() == [19, 9]


def test_text_without_images_is_numbered_from_zero() -> None:
    ids, mask = batch([[1, 2, 3]])
    found = positions(ids, mask, IMAGE, np.zeros((0, 0), dtype=np.int64), PositionRule("original", 8))
    assert found.ids.tolist() == [[0, 1, 2]]
    assert found.following.tolist() == [3]


def test_positions_of_three_axes_go_on_after_all_of_a_clip() -> None:
    """Of two grids of 2 x 3 tokens, 7 apart in time, whether or not tokens of the last are kept."""
    rule = PositionRule("original", 3, ((2, 3), (2, 3)), time_step=7.5)
    ids, mask = batch([[1, IMAGE, IMAGE, 2, 3], [IMAGE, IMAGE, 4]])
    found = positions(ids, mask, IMAGE, np.array([[0, 5], [4, 6]]), rule)
    assert found.ids[:, 0].tolist() == [[0, 1, 1, 4, 5], [0, 1, 2, 4, 5], [0, 1, 3, 4, 5]]
    assert found.ids[:, 1, 2:].tolist() == [[0, 7, 3], [1, 0, 3], [1, 0, 3]]
    assert found.following.tolist() == [9, 8]

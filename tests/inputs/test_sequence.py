"""Positions and places of text and visual tokens in a batch of prompts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.inputs.sequence import PositionRule, cut, positions, text_tokens

IMAGE = 9


def batch(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, rows))
    ids = np.array([[0] * (longest - len(row)) + row for row in rows], dtype=np.int64)
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=np.int64)
    return ids, mask


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


def test_positions_of_three_axes_go_on_behind_all_of_a_clip() -> None:
    """Of two grids of 2 x 3 tokens, 7 apart in time, whether or not tokens of the last are kept."""
    rule = PositionRule("original", 3, ((2, 3), (2, 3)), time_step=7.5)
    ids, mask = batch([[1, IMAGE, IMAGE, 2, 3], [IMAGE, IMAGE, 4]])
    found = positions(ids, mask, IMAGE, np.array([[0, 5], [4, 6]]), rule)
    assert found.ids[:, 0].tolist() == [[0, 1, 1, 4, 5], [0, 1, 2, 4, 5], [0, 1, 3, 4, 5]]
    assert found.ids[:, 1, 2:].tolist() == [[0, 7, 3], [1, 0, 3], [1, 0, 3]]
    assert found.following.tolist() == [9, 8]


rows = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=4)


@settings(max_examples=100)
@given(rows)
def test_text_tokens_are_found_and_put_back(prompts: list[list[int]]) -> None:
    ids, mask = batch(prompts)
    text = text_tokens(ids, mask, IMAGE)
    for row, prompt in enumerate(prompts):
        wanted = [token for token in prompt if token != IMAGE]
        assert ids[row, text.indices[row][text.mask[row] == 1]].tolist() == wanted
        assert int(text.mask[row].sum()) == len(wanted)
    # Marking the gathered text and merging it back marks text and nothing else.
    gathered = np.where(text.mask == 1, 100 + np.take_along_axis(ids, text.indices, axis=1), -1)
    merged = np.take_along_axis(np.concatenate([ids, gathered], axis=1), text.back, axis=1)
    is_text = (ids != IMAGE) & (mask == 1)
    assert (merged == np.where(is_text, ids + 100, ids)).all()


def test_cut_lays_out_what_stays() -> None:
    ids = np.array([[0, 1, IMAGE, IMAGE, IMAGE, 5, IMAGE, IMAGE, IMAGE, 7], [0, 0, 0, 0, 0, 1, IMAGE, IMAGE, IMAGE, 7]])
    made = cut(ids, (ids != 0).astype(np.int64), IMAGE, tokens=3, keep=2, queries="text_after_image")
    assert made.query_tokens.image_rows.tolist() == [0, 0, 1]
    assert made.query_tokens.image_columns.tolist() == [[2, 3, 4], [6, 7, 8], [6, 7, 8]]
    assert made.query_tokens.query_columns.tolist() == [[5, 9], [0, 9], [0, 9]]
    assert made.query_tokens.query_mask.tolist() == [[1, 1], [0, 1], [0, 1]]
    # Ten places a row; 10 and 11 are the first image's kept tokens, 12 and 13 the second's, 14 and 15 the third's.
    assert made.layout.tolist() == [[1, 10, 11, 5, 12, 13, 9], [0, 0, 0, 5, 14, 15, 9]]
    assert made.input_ids.tolist() == [[1, IMAGE, IMAGE, 5, IMAGE, IMAGE, 7], [0, 0, 0, 1, IMAGE, IMAGE, 7]]
    assert made.attention_mask.tolist() == [[1] * 7, [0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("queries", "columns"), [("text_after_image", [[4, 5]]), ("all_text", [[0, 4, 5]]), ("last_token", [[5]])]
)
def test_cut_knows_who_asks(queries: str, columns: list[list[int]]) -> None:
    ids = np.array([[1, IMAGE, IMAGE, IMAGE, 5, 7]])
    made = cut(ids, np.ones_like(ids), IMAGE, tokens=3, keep=1, queries=queries)
    assert made.query_tokens.query_columns.tolist() == columns

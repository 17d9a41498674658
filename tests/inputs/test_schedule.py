"""Places of text and visual tokens in a batch of prompts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inputs.batches import IMAGE, batch
from vtc.inputs.schedule import cut, text_tokens

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

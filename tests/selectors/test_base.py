"""Ties: of equal scores the lower index wins, one by one and in order."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.selectors.base import ascending_with, best, kept_mask, top_k


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=40), data=st.data())
def test_of_equal_scores_the_lower_index_wins(values: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(values)))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep]
    assert top_k(torch.tensor([values], dtype=torch.float32), keep)[0].tolist() == expected


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_the_best_is_the_first_of_equals(values: list[int]) -> None:
    assert best(torch.tensor([values], dtype=torch.float32)).tolist() == [[values.index(max(values))]]


def test_features_follow_their_indices() -> None:
    indices, features = ascending_with(torch.tensor([[5, 1, 3]]), torch.tensor([[[50.0], [10.0], [30.0]]]))
    assert indices.tolist() == [[1, 3, 5]]
    assert features.flatten().tolist() == [10.0, 30.0, 50.0]
    assert kept_mask(indices, 6).tolist() == [[0, 1, 0, 1, 0, 1]]

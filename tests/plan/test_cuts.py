"""Cuts inside the decoder, and budgets that are spent on them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.sizes import LLAVA_15
from tests.tiny import recipe
from vtc.errors import RecipeError
from vtc.plan import plan
from vtc.recipe import Recipe


def cut_at(layer: Any, **fields: Any) -> dict[str, Any]:
    return {"kind": "prune_in_decoder", "layer": layer, **fields}


def with_budget(budget: dict[str, Any], *stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"version": 1, "name": "test", "budget": budget, "stages": list(stages)})


PRUNE: dict[str, Any] = {"kind": "prune", "selector": "uniform"}


def test_a_cut_splits_the_decoder() -> None:
    made = plan(recipe({**PRUNE, "keep": 100}, cut_at(12, keep=30), cut_at(0.75, keep=0.5)), LLAVA_15)
    assert [(s.layers[0], s.visual_tokens, s.enters, s.stage) for s in made.segments] == [
        (0, 100, "same", None),
        (12, 30, "prune", 1),
        (24, 15, "prune", 2),
    ]
    assert made.cut_layers == (12, 24)
    assert made.layer_average == (12 * 100 + 12 * 30 + 8 * 15) / 32


@pytest.mark.parametrize(
    ("average", "keeps"),
    # The paper's budgets: T = (12 * 3 + 20) / 32 * R2 = 1.75 R2.
    [(128, [219, 73]), (64, [110, 37]), (32, [55, 18]), (32 / 576, [55, 18]), (1.75, [3, 1])],
)
def test_a_budget_is_a_layer_average_and_a_ratio(average: float, keeps: list[int]) -> None:
    share = average / 576 if average == 1.75 else average
    made = plan(with_budget({"keep_average": share, "ratio": 3}, PRUNE, cut_at(0.375)), LLAVA_15)
    found = [stage.tokens_out for stage in made.stages]
    allowed = share * 576 if share < 1 else share
    assert made.layer_average <= allowed + 1e-9
    assert all(abs(a - b) <= 1 for a, b in zip(found, keeps, strict=True))
    assert made.layer_average > allowed - 1


@given(
    average=st.integers(4, 500),
    ratio=st.floats(1, 8, exclude_min=True),
    layers=st.lists(st.integers(1, 31), min_size=1, max_size=4, unique=True).map(sorted),
)
@example(average=4, ratio=1.25, layers=[1, 2, 3, 30])  # rounding lowered an earlier stage below two later ones
def test_no_budget_is_exceeded(average: int, ratio: float, layers: list[int]) -> None:
    made = plan(with_budget({"keep_average": average, "ratio": ratio}, PRUNE, *map(cut_at, layers)), LLAVA_15)
    assert made.layer_average <= average
    tokens = [stage.tokens_out for stage in made.stages]
    assert tokens == sorted(tokens, reverse=True)


def test_a_budget_counts_the_layers_before_the_first_cut() -> None:
    made = plan(with_budget({"keep_average": 64, "ratio": 2}, cut_at(2), cut_at(16)), LLAVA_15)
    # 2 * 576 of 32 * 64 tokens are spent before the first cut; 14 layers of 2R and 16 of R share the rest.
    assert [stage.tokens_out for stage in made.stages] == [41, 20]
    with pytest.raises(RecipeError, match=r"32 tokens cannot be reached; this recipe needs at least 36\.9375"):
        plan(with_budget({"keep_average": 32, "ratio": 2}, cut_at(2), cut_at(16)), LLAVA_15)


BAD_CUTS: list[tuple[Recipe, str]] = [
    (recipe(cut_at(32, keep=4)), "no cut before layer 32 of 32; give one from 1 to 31"),
    (recipe(cut_at(0, keep=4)), "no cut before layer 0 of 32"),
    (recipe(cut_at(4, keep=64), cut_at(4, keep=32)), "layer 4 does not come after layer 4 of stages.0"),
    (recipe(cut_at(9, keep=64), cut_at(4, keep=32)), "layer 4 does not come after layer 9 of stages.0"),
    (recipe(cut_at(9, keep=64), cut_at(12, keep=65)), "cannot keep 65 of 64 visual tokens"),
    (recipe(cut_at(9, keep=64), {"kind": "visual_exit", "layer": 9}), "they leave before layer 9"),
    (recipe(cut_at(9, keep=64), {"kind": "drop_layers", "layers": [9]}), "layer 9 is removed by this recipe"),
    (recipe(cut_at(1, keep=64), {"kind": "drop_layers", "layers": [0]}), "no layer is left before layer 1"),
    (
        recipe(cut_at(9, keep=64), {"kind": "drop_layers", "layers": [8], "visual_only": True}),
        "visual tokens skip layer 8",
    ),
    (recipe(cut_at(9)), "keep is missing; give a number of tokens, a fraction, or the recipe a budget"),
    (with_budget({"keep_average": 8}, cut_at(9, keep=8)), "is the recipe's budget to decide"),
    (with_budget({"keep_average": 8}), "nothing to spend it"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_CUTS, ids=[message for _, message in BAD_CUTS])
def test_impossible_cuts_are_refused(wrong: Recipe, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        plan(wrong, LLAVA_15)
    assert message in str(refused.value)


def test_a_calibrated_exit_lies_after_every_cut() -> None:
    made = plan(recipe(cut_at(20, keep=8), {"kind": "visual_exit", "layer": "auto"}), LLAVA_15)
    assert made.stages[1].layer == 21

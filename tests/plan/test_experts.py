"""Fewer experts in numbers, and what cannot work on a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.plan.planning import faults
from tests.sizes import SMALL
from tests.tiny import recipe
from vtc.errors import RecipeError
from vtc.plan import TokenPlan, plan
from vtc.plan.costs import HOLES, Costs, Weights, weight_count
from vtc.recipe import NONE
from vtc.recipe.experts import ExpertPlacement

MIXTURE = replace(SMALL, decoder=replace(SMALL.decoder, layers=3, experts=8, active_experts=2))
LIST = {"kind": "prune_experts", "experts": [[0, 1, 2]] * 3}
VISUAL = {"kind": "visual_experts", "experts": [[0, 2]] * 3}
GROUPS = {"kind": "merge_experts", "groups": [[[[e, 1.0]] for e in range(6)] + [[[6, 0.5], [7, 0.5]]]] * 3}
FEW = "and a token passes 2; leave 2 to 8"

BAD: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "keep below active": (
        [{"kind": "prune_experts", "keep": 1}],
        [f"stages.0.keep: leaves 1 of 8 experts, {FEW}"],
    ),
    "keep above all": (
        [{"kind": "merge_experts", "keep": 9}],
        [f"stages.0.keep: leaves 9 of 8 experts, {FEW}"],
    ),
    "a share below active": (
        [{"kind": "prune_experts", "keep": 0.1}],
        [f"stages.0.keep: leaves 1 of 8 experts, {FEW}"],
    ),
    "a list below active": (
        [{"kind": "prune_experts", "experts": [[3]] * 3}],
        [f"stages.0.experts: leaves 1 of 8 experts, {FEW}"],
    ),
    "lists of another depth": (
        [{"kind": "prune_experts", "experts": [[0, 1]] * 4}],
        ["stages.0.experts: lists 4 layers, and this model's decoder has 3"],
    ),
    "an expert that is not there": (
        [{"kind": "prune_experts", "experts": [[0, 1], [0, 8], [0, 1]]}],
        ["stages.0.experts: names expert 8, and a layer of this model has 8"],
    ),
    "groups of another model": (
        [{"kind": "merge_experts", "groups": [[[[0, 1]], [[1, 1]]]] * 3}],
        ["stages.0.groups: lists 2 experts, and a layer of this model has 8"],
    ),
    "lists after others": (
        [LIST, {"kind": "prune_experts", "experts": [[0, 3]] * 3}],
        ["stages.1.experts: names expert 3, and a layer of this model has 3"],
    ),
    "groups after lists": (
        [LIST, GROUPS],
        [
            "stages.1.groups: lists 8 experts, and a layer of this model has 3",
            "stages.1.groups: leaves 7 of 3 experts, and a token passes 2; leave 2 to 3",
        ],
    ),
    "visual tokens below active": (
        [{"kind": "visual_experts", "keep": 1}],
        [f"stages.0.keep: leaves 1 of 8 experts, {FEW}"],
    ),
    "visual tokens of those that are left": (
        [LIST, {"kind": "visual_experts", "experts": [[0, 3]] * 3}],
        ["stages.1.experts: names expert 3, and a layer of this model has 3"],
    ),
    "change what visual tokens were given": (
        [VISUAL, LIST, {"kind": "merge_experts", "keep": 3}, VISUAL],
        [
            f"stages.{stage}: changes experts of which stages.0 gives visual tokens some; move it before that"
            for stage in (1, 2, 3)
        ]
        + ["stages.3: routers go on telling apart what stages.2 merges; leave one of the two out"],
    ),
    "drop what was merged": (
        [GROUPS, {"kind": "prune_experts", "keep": 4}],
        ["stages.1: routers go on telling apart what stages.0 merges; drop experts before it"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work(case: str) -> None:
    stages, expected = BAD[case]
    assert faults(MIXTURE, *stages) == expected


def test_more_sets_than_can_be_tried() -> None:
    wide = replace(MIXTURE, decoder=replace(MIXTURE.decoder, experts=20))
    assert faults(wide, {"kind": "prune_experts", "keep": 10, "score": "naee"}) == [
        "stages.0.score: 10 of 20 experts are 1.85e+05 sets, and at most 20000 are tried; choose by another score, "
        "such as reap"
    ]
    assert plan(recipe({"kind": "prune_experts", "keep": 17, "score": "naee"}), wide).experts == 17


@pytest.mark.parametrize("stage", [LIST, GROUPS, VISUAL, {"kind": "prune_experts", "keep": 2}], ids=str)
def test_dense_models_have_none(stage: dict[str, Any]) -> None:
    dense = replace(SMALL, decoder=replace(SMALL.decoder, layers=3))
    assert faults(dense, stage) == ["stages.0: llava is dense here, it has no experts; leave the stage out"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"devices": 3}, "experts.devices: 3 devices do not divide 8 experts; give a number that does"),
        ({"devices": 4, "placement": "eplb", "copies": 2}, "4 devices do not divide 8 experts and 2 copies"),
    ],
)
def test_devices_divide_the_experts(asked: dict[str, Any], words: str) -> None:
    placed = NONE.model_copy(update={"experts": ExpertPlacement(**asked)})
    with pytest.raises(RecipeError, match=words):
        plan(placed, MIXTURE)
    with pytest.raises(RecipeError, match="experts: llava is dense here, it has no experts to place"):
        plan(placed, SMALL)


def test_experts_of_visual_tokens_are_not_placed() -> None:
    placed = recipe(VISUAL).model_copy(update={"experts": ExpertPlacement(devices=2)})
    with pytest.raises(RecipeError, match="experts: visual tokens have experts of their own, which no server knows"):
        plan(placed, MIXTURE)


def test_devices_divide_the_experts_that_are_left() -> None:
    placed = recipe({"kind": "prune_experts", "keep": 6}).model_copy(update={"experts": ExpertPlacement(devices=3)})
    assert plan(placed, MIXTURE).experts == 6
    with pytest.raises(RecipeError, match="4 devices do not divide 6 experts"):
        plan(placed.model_copy(update={"experts": ExpertPlacement(devices=4)}), MIXTURE)


def test_what_stages_leave() -> None:
    baseline, pruned, merged = (plan(recipe(*stages), MIXTURE) for stages in ([], [LIST], [GROUPS]))
    assert [made.experts for made in (baseline, pruned, merged)] == [None, 3, 7]
    assert [pruned.stages[0].detail, merged.stages[0].detail] == [
        "3 of 8 experts of each layer stay",
        "7 of 8 experts of each layer are left by merging",
    ]
    decoder = MIXTURE.decoder
    tokens = sum(baseline.text_tokens + visual for visual in baseline.decoder_visual_tokens)
    router = 2 * decoder.width * tokens
    # A token passes as many experts as before; of the routers, fewer rows are left where experts are dropped.
    assert baseline.flops["exact"] - pruned.flops["exact"] == 5 * router
    assert merged.flops["exact"] == baseline.flops["exact"]
    expert = 3 * decoder.width * decoder.ffn
    row = decoder.width
    assert weight_count(baseline, MIXTURE) - weight_count(pruned, MIXTURE) == 3 * 5 * (expert + row)
    assert weight_count(baseline, MIXTURE) - weight_count(merged, MIXTURE) == 3 * (expert + row)
    assert pruned.kv_bytes == baseline.kv_bytes


def test_what_visual_tokens_pass() -> None:
    baseline, made = plan(recipe(LIST), MIXTURE), plan(recipe(LIST, VISUAL), MIXTURE)
    assert made.stages[1].detail == "visual tokens choose among 2 of 3 experts of each layer"
    assert (made.experts, made.stages[1].visual_experts) == (3, 2)
    decoder, visual = MIXTURE.decoder, sum(made.decoder_visual_tokens)
    row, expert = decoder.width, 3 * decoder.width * decoder.ffn
    # A visual token passes as many experts as before; of three, it has two that may be computed.
    assert baseline.flops["routed"] - made.flops["routed"] == 2 * visual * row
    assert baseline.executed - made.executed == 2 * visual * (row + expert)
    assert TokenPlan.from_dict(made.to_dict()) == made
    # Its experts are among those of text; of the router, it has rows of its own.
    assert weight_count(made, MIXTURE) - weight_count(baseline, MIXTURE) == 3 * 2 * row
    costs = Costs(MIXTURE, Weights(numbers=1000, largest=100, stored="float32", bytes=4000))
    less = costs.asked(baseline, every_expert=True) - costs.asked(made, every_expert=True)
    assert less == pytest.approx(HOLES * made.keep * 3 * decoder.ffn * 4, abs=1)

"""Fewer experts in numbers, and what cannot work on a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.plan.planning import faults
from tests.sizes import SMALL
from tests.tiny import recipe
from vtc.errors import RecipeError
from vtc.plan import plan
from vtc.plan.costs import weight_count
from vtc.recipe import NONE
from vtc.recipe.experts import ExpertPlacement

MIXTURE = replace(SMALL, decoder=replace(SMALL.decoder, layers=3, experts=8, active_experts=2))
LIST = {"kind": "prune_experts", "experts": [[0, 1, 2]] * 3}
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


@pytest.mark.parametrize("stage", [LIST, GROUPS, {"kind": "prune_experts", "keep": 2}], ids=lambda one: one["kind"])
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

"""What cannot work on a model is refused before any work, all at once, with file and line."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plan.planning import CLS, RANDOM, faults, without
from tests.sizes import LLAVA_15, SMALL, WITHOUT_CLS
from tests.tiny import recipe
from vtc.errors import InputError, RecipeError
from vtc.plan import check, plan
from vtc.recipe import load_recipe, parse_recipe

BAD: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "keep more than there are": (
        [{**CLS, "keep": 257}],
        ["stages.0.keep: cannot keep 257 of 256 visual tokens; give at most 256 or a fraction"],
    ),
    "a budget beyond what there is": (
        [{**CLS, "keep": [16, 300, 301]}],
        [
            "stages.0.keep: cannot keep 300 of 256 visual tokens; give at most 256 or a fraction",
            "stages.0.keep: cannot keep 301 of 256 visual tokens; give at most 256 or a fraction",
        ],
    ),
    "a budget that leaves a later cut too few": (
        [{**CLS, "keep": [16, 64]}, {"kind": "prune_in_decoder", "layer": 2, "keep": 20}],
        ["stages.1.keep: cannot keep 20 of 16 visual tokens; give at most 16 or a fraction"],
    ),
    "budgets twice": (
        [{**CLS, "keep": [16, 64]}, {**RANDOM, "keep": [8, 16]}],
        ["stages.1.keep: stages.0 has the budgets of this recipe; give one number or a fraction"],
    ),
    "second prune grows": (
        [RANDOM, {**RANDOM, "keep": 20}],
        ["stages.1.keep: cannot keep 20 of 14 visual tokens; give at most 14 or a fraction"],
    ),
    "filter that grows": (
        [{"kind": "frequency_filter", "keep": 300}],
        ["stages.0.keep: cannot keep 300 of 256 visual tokens; give at most 256 or a fraction"],
    ),
    "filter without a grid": (
        [{"kind": "frequency_filter", "keep": 17}],
        ["stages.0.keep: 17 tokens form no grid inside 16x16; the nearest that do: 16 (4x4), 18 (3x6)"],
    ),
    "filter after prune": (
        [RANDOM, {"kind": "frequency_filter", "keep": 4}],
        ["stages.1: needs a whole grid, and stages.0 has pruned it; put the filter first"],
    ),
    "cls_attention after filter": (
        [{"kind": "frequency_filter", "keep": 64}, CLS],
        [
            "stages.1.selector: cls_attention scores the encoder's own patches, and stages.0 has replaced those; "
            f"after a frequency_filter these work: {without('reads_encoder_grid')}"
        ],
    ),
    "learned after filter": (
        [
            {"kind": "frequency_filter", "keep": 64},
            {**RANDOM, "selector": {"name": "learned", "checkpoint": "a.safetensors"}},
        ],
        [
            "stages.1.selector: learned scores the encoder's own patches, and stages.0 has replaced those; "
            f"after a frequency_filter these work: {without('reads_encoder_grid')}"
        ],
    ),
    "prune after exit": (
        [{"kind": "visual_exit", "layer": 3}, RANDOM],
        ["stages.1: prune happens before visual_exit; move it before stages.0"],
    ),
    "encoder after prune": (
        [RANDOM, {"kind": "drop_layers", "component": "encoder", "layers": [1]}],
        ["stages.1: dropping encoder layers happens before prune; move it before stages.0"],
    ),
    "two exits": (
        [{"kind": "visual_exit", "layer": 3}, {"kind": "visual_exit", "layer": 5}],
        ["stages.1: all visual tokens have left at stages.0 already"],
    ),
    "exit too deep": (
        [{"kind": "visual_exit", "layer": 8}],
        ["stages.0.layer: no exit before layer 8 of 8; give one from 1 to 7"],
    ),
    "exit at once": (
        [{"kind": "visual_exit", "layer": 0}],
        ["stages.0.layer: no exit before layer 0 of 8; give one from 1 to 7"],
    ),
    "two conventions of positions": (
        [RANDOM, {**RANDOM, "keep": 3, "positions": "original"}],
        ["stages.1.positions: stages.0 says renumber; one recipe has one convention"],
    ),
    "layer that is not there": (
        [{"kind": "drop_layers", "layers": [8, -9]}],
        [
            "stages.0.layers: no layer 8: the decoder has 8 layers, 0 to 7",
            "stages.0.layers: no layer -9: the decoder has 8 layers, 0 to 7",
        ],
    ),
    "layer named twice": (
        [{"kind": "drop_layers", "layers": [7, -1]}],
        ["stages.0.layers: layers 7 and -1 are the same of 8"],
    ),
    "layer dropped twice": (
        [{"kind": "drop_layers", "layers": [2]}, {"kind": "drop_layers", "layers": [2], "visual_only": True}],
        ["stages.1.layers: layer 2 is dropped by stages.0 already"],
    ),
    "every decoder layer": (
        [{"kind": "drop_layers", "layers": list(range(8))}],
        ["stages.0: no decoder layer is left"],
    ),
    "every decoder layer, by calibration": (
        [{"kind": "drop_layers", "layers": "auto", "count": 8}],
        ["stages.0: no decoder layer is left"],
    ),
    "more layers than there are": (
        [{"kind": "drop_layers", "layers": "auto", "count": 9}],
        [
            "stages.0.count: cannot drop 9 layers, only 8 are there to choose from",
            "stages.0: no decoder layer is left",
        ],
    ),
    "image skipped everywhere": (
        [{"kind": "drop_layers", "layers": list(range(8)), "visual_only": True}],
        ["stages.0: no decoder layer is left that sees the image"],
    ),
    "image skipped before the exit": (
        [
            {"kind": "visual_exit", "layer": 2},
            {"kind": "drop_layers", "layers": [0, 1], "visual_only": True},
        ],
        ["stages.1: no decoder layer is left that sees the image"],
    ),
    "image skipped where it has left": (
        [{"kind": "visual_exit", "layer": 2}, {"kind": "drop_layers", "layers": [5], "visual_only": True}],
        ["stages.1.layers: layer 5 sees no visual tokens, they leave before layer 2"],
    ),
    "exit after the last layer": (
        [{"kind": "visual_exit", "layer": 6}, {"kind": "drop_layers", "layers": [6, 7]}],
        ["stages.1: no decoder layer is left from 6 on, so the visual exit there does nothing"],
    ),
    "every encoder layer": (
        [{"kind": "drop_layers", "component": "encoder", "layers": [0, 1, 2, 3, 4]}],
        ["stages.0: no encoder layer is left"],
    ),
    "attention of a dropped layer": (
        [
            {"kind": "drop_layers", "component": "encoder", "layers": [3]},
            {**CLS, "selector": {"name": "cls_attention", "layers": [3]}},
        ],
        ["stages.1.selector.layers: encoder layer 3 is dropped by this recipe"],
    ),
    "attention of no layer": (
        [{**CLS, "selector": {"name": "cls_attention", "layers": [5]}}],
        ["stages.0.selector.layers: no layer 5: the encoder has 5 layers, 0 to 4"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work(case: str) -> None:
    stages, expected = BAD[case]
    assert faults(SMALL, *stages) == expected


def test_layers_after_the_feature_layer_cannot_be_used() -> None:
    drop = {"kind": "drop_layers", "component": "encoder", "layers": [23]}
    late = {**CLS, "selector": {"name": "cls_attention", "layers": [-1]}}
    assert faults(LLAVA_15, drop) == ["stages.0.layers: encoder layer 23 is not computed, layers 0 to 22 are"]
    assert faults(LLAVA_15, late) == ["stages.0.selector.layers: encoder layer 23 is not computed; layers up to 22 are"]


def test_cls_attention_needs_a_cls_token() -> None:
    assert faults(WITHOUT_CLS, CLS) == [
        "stages.0.selector: cls_attention needs a CLS token, and this encoder has none; "
        f"these work: {without('needs_cls')}"
    ]


def test_faults_come_all_at_once_with_their_lines() -> None:
    text = (
        "version: 1\nname: test\nstages:\n"
        "  - kind: prune\n    keep: 300\n    selector: cls_attention\n"
        "  - kind: visual_exit\n    layer: 9\n"
    )
    with pytest.raises(RecipeError) as error:
        plan(parse_recipe(text, file="r.yaml"), WITHOUT_CLS)
    assert [line.split(": ")[:2] for line in str(error.value).splitlines()] == [
        ["r.yaml:5", "stages.0.keep"],
        ["r.yaml:6", "stages.0.selector"],
        ["r.yaml:8", "stages.1.layer"],
    ]


def test_fault_of_an_override_names_it() -> None:
    with pytest.raises(RecipeError, match=r"--set stages\.0\.keep=999: stages\.0\.keep: cannot keep 999"):
        plan(load_recipe("fastervlm", ["stages.0.keep=999"]), SMALL)


def test_check_finds_what_no_model_can_do() -> None:
    with pytest.raises(RecipeError, match="needs a whole grid"):
        check(recipe(RANDOM, {"kind": "frequency_filter", "keep": 4}))
    check(recipe({**CLS, "keep": 10**6}))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("fastervlm", []), ("learnpruner", []), ("qmop", ["stages.0.projector.branches=[pooling]"])],
)
def test_nothing_to_split_at_is_refused(name: str, settings: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        check(load_recipe(name, ["split_text=true", *settings]))
    assert str(error.value) == (
        "--set split_text=true: split_text: nothing before the decoder reads the question (these do: cdpruner, mmtok, "
        "qmop, quecc); leave it out"
    )


@pytest.mark.parametrize(
    ("name", "settings"), [("mmtok", []), ("quecc", []), ("qmop", ["stages.0.projector.question=true"])]
)
def test_graphs_are_split_at_the_stage_that_reads_the_question(name: str, settings: list[str]) -> None:
    split, whole = (plan(load_recipe(name, [*settings, *more]), SMALL) for more in (["split_text=true"], []))
    assert (split.split_at, whole.split_at) == (0, None)
    assert split.stages[0].detail == f"{whole.stages[0].detail}, split where it reads the question"
    assert (split.flops, split.kv_bytes) == (whole.flops, whole.kv_bytes)


def test_negative_text_is_refused() -> None:
    with pytest.raises(InputError, match="text_tokens"):
        plan(recipe(), SMALL, text_tokens=-1)


def test_last_layers_end_at_the_feature_layer() -> None:
    spec = {"kind": "prune", "keep": 4, "selector": {"name": "cls_attention", "last": 2}}
    feature = SMALL.encoder.feature_layer
    assert plan(recipe(spec), SMALL).stages[0].layers == (feature - 1, feature)
    with pytest.raises(RecipeError, match=r"selector\.last: 99 layers, but only"):
        plan(recipe({**spec, "selector": {"name": "cls_attention", "last": 99}}), SMALL)

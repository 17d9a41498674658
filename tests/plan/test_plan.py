"""Plans: the numbers of a recipe on a model, and the recipes that cannot work on it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.sizes import LLAVA_15, SMALL, WITHOUT_CLS
from tests.strategies import in_any_order, in_data_order, recipes
from tests.tiny import recipe
from vtc.errors import InputError, RecipeError
from vtc.facts.layout import single_view
from vtc.facts.model import ModelFacts
from vtc.plan import SegmentPlan, TokenPlan, check, plan
from vtc.plan.stages.frequency_filter import smaller_grid
from vtc.recipe import Recipe, builtin_recipes, load_recipe, parse_recipe
from vtc.recipe.selectors import ENCODER_SELECTORS

CLS = {"kind": "prune", "keep": 14, "selector": "cls_attention"}
RANDOM = {"kind": "prune", "keep": 14, "selector": "random"}


def faults(facts: ModelFacts, *stages: dict[str, Any]) -> list[str]:
    """What is wrong with these stages on a model, without the place."""
    with pytest.raises(RecipeError) as error:
        plan(recipe(*stages), facts)
    return [line.removeprefix("recipe: ") for line in str(error.value).splitlines()]


def without(flag: str) -> str:
    """Selectors of still images that lack a property, as messages list them."""
    return ", ".join(n for n, e in ENCODER_SELECTORS.items() if not getattr(e, flag) and not e.across_frames)


def planned(data: dict[str, Any], facts: ModelFacts) -> tuple[Recipe, TokenPlan]:
    """A recipe that works on the model, with its plan; others are no example."""
    found = Recipe.model_validate(data)
    try:
        return found, plan(found, facts)
    except RecipeError:
        assume(False)
        raise


# Properties ---------------------------------------------------------------------------------------------------

facts_of_any_size = st.builds(
    lambda grid, encoder_layers, feature, decoder_layers: replace(
        SMALL,
        layout=single_view((14 * grid[0], 14 * grid[1]), grid),
        encoder=replace(SMALL.encoder, layers=encoder_layers, feature_layer=feature % encoder_layers),
        decoder=replace(SMALL.decoder, layers=decoder_layers),
    ),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.integers(1, 12),
    st.integers(0, 11),
    st.integers(1, 12),
)


@given(recipes(in_any_order), facts_of_any_size)
def test_any_recipe_gives_a_plan_or_a_recipe_error(data: dict[str, Any], facts: ModelFacts) -> None:
    with contextlib.suppress(RecipeError):
        plan(Recipe.model_validate(data), facts)


@given(recipes(in_data_order), st.sampled_from([SMALL, LLAVA_15]))
def test_json_round_trip_is_exact(data: dict[str, Any], facts: ModelFacts) -> None:
    _, made = planned(data, facts)
    assert TokenPlan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@given(recipes(in_data_order), facts_of_any_size)
def test_stages_hand_their_tokens_on(data: dict[str, Any], facts: ModelFacts) -> None:
    found, made = planned(data, facts)
    assert [stage.kind for stage in made.stages] == [stage.kind for stage in found.stages]
    keep = tokens = facts.visual_tokens
    for stage in made.stages:
        assert stage.tokens_in == tokens
        assert 0 <= stage.tokens_out <= stage.tokens_in
        if stage.grids_out and stage.kind != "visual_exit":
            assert stage.grids_out[0][0] * stage.grids_out[0][1] == stage.tokens_out
        if stage.kind in ("frequency_filter", "prune", "prune_in_decoder"):
            tokens = stage.tokens_out
        if stage.kind in ("frequency_filter", "prune"):
            keep = tokens
    assert made.keep == keep >= tokens >= 1


@given(recipes(in_data_order), facts_of_any_size)
def test_segments_cover_the_layers_that_run(data: dict[str, Any], facts: ModelFacts) -> None:
    _, made = planned(data, facts)
    places = [place for segment in made.segments for place in segment.layers]
    assert places == list(range(len(made.decoder_layers)))
    tokens = made.keep
    for before, segment in pairwise([SegmentPlan((), "all", made.keep), *made.segments]):
        changes = {("all", "text"): "gather", ("text", "all"): "merge"}.get((before.sees, segment.sees), "same")
        assert segment.enters == ("prune" if segment.stage is not None else changes)
        assert before.sees != segment.sees or segment.stage is not None or not before.layers
        if segment.stage is not None:
            assert before.sees == segment.sees == "all"
            assert segment.visual_tokens == made.stages[segment.stage].tokens_out
            tokens = segment.visual_tokens
        assert segment.visual_tokens == (tokens if segment.sees == "all" else 0)
        assert {made.decoder_visual_tokens[place] for place in segment.layers} == {segment.visual_tokens}
    assert any(segment.sees == "all" for segment in made.segments)
    assert sorted(set(made.decoder_layers)) == list(made.decoder_layers)
    assert made.layer_average == sum(made.decoder_visual_tokens) / facts.decoder.layers


@given(recipes(in_data_order), facts_of_any_size)
def test_nothing_costs_more_than_the_model_as_it_is_but_for_what_selection_adds(
    data: dict[str, Any], facts: ModelFacts
) -> None:
    _, made = planned(data, facts)
    base = plan(recipe(), facts)
    for key in ("fastv", "pyramiddrop"):
        assert made.flops[key] <= base.flops[key]
    for part in ("decoder", "head"):
        assert made.flops_parts[part] <= base.flops_parts[part]
    assert made.kv_bytes <= base.kv_bytes
    assert made.flops["exact"] == sum(made.flops_parts.values())


@given(recipes(in_data_order), facts_of_any_size)
def test_values_left_to_calibration_are_listed(data: dict[str, Any], facts: ModelFacts) -> None:
    found, made = planned(data, facts)
    assert list(made.provisional) == found.autos


@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 600))
def test_smaller_grid_has_the_tokens_and_fits(height: int, width: int, keep: int) -> None:
    found = smaller_grid((height, width), keep)
    possible = [(h, w) for h in range(1, height + 1) for w in range(1, width + 1) if h * w == keep]
    assert (found in possible) if possible else found is None


@pytest.mark.parametrize("facts", [SMALL, LLAVA_15], ids=["small", "llava-1.5"])
@pytest.mark.parametrize("name", builtin_recipes())
def test_shipped_recipe_fits(name: str, facts: ModelFacts) -> None:
    found = load_recipe(name)
    check(found)
    made = plan(found, facts)
    base = plan(recipe(), facts)
    assert (made.flops["fastv"] < base.flops["fastv"]) == bool(found.stages)


# Numbers ------------------------------------------------------------------------------------------------------


def test_null_recipe_changes_nothing() -> None:
    made = plan(recipe(), LLAVA_15)
    assert made.stages == ()
    assert made.keep == made.visual_tokens_in == made.layer_average == 576
    assert made.encoder_layers == tuple(range(23))
    assert made.decoder_layers == tuple(range(32))
    assert [segment.layers for segment in made.segments] == [tuple(range(32))]
    assert made.positions == "renumber"


@pytest.mark.parametrize(
    ("keep", "facts", "tokens"), [(0.055, SMALL, 14), (0.055, LLAVA_15, 32), (1e-6, SMALL, 1), (64, SMALL, 64)]
)
def test_keep_is_a_number_or_a_fraction(keep: int | float, facts: ModelFacts, tokens: int) -> None:
    made = plan(recipe({**CLS, "keep": keep}), facts)
    assert made.keep == tokens
    assert made.decoder_visual_tokens == (tokens,) * facts.decoder.layers


def test_a_fraction_is_of_what_enters_the_stage() -> None:
    stages = {"kind": "frequency_filter", "keep": 0.25}, {**RANDOM, "keep": 0.25}
    assert [stage.tokens_out for stage in plan(recipe(*stages), SMALL).stages] == [64, 16]


def test_filter_keeps_the_aspect() -> None:
    wide = replace(SMALL, layout=single_view((168, 336), (12, 24)))
    assert plan(recipe({"kind": "frequency_filter", "keep": 0.25}), wide).stages[0].grids_out == ((6, 12),)


def test_exit_at_a_depth() -> None:
    assert plan(recipe({"kind": "visual_exit", "layer": 0.875}), LLAVA_15).stages[0].layer == 28


def test_exit_leaves_two_segments() -> None:
    made = plan(recipe({**RANDOM, "keep": 10}, {"kind": "visual_exit", "layer": -3}), SMALL)
    assert made.stages[1].layer == 5
    assert [(segment.layers, segment.sees) for segment in made.segments] == [
        ((0, 1, 2, 3, 4), "all"),
        ((5, 6, 7), "text"),
    ]
    assert made.layer_average == 10 * 5 / 8


def test_dropped_layers_are_gone_and_lower_the_average() -> None:
    made = plan(recipe({"kind": "drop_layers", "layers": [2, -2]}), SMALL)
    assert made.decoder_layers == (0, 1, 3, 4, 5, 7)
    assert made.stages[0].layers == (2, 6)
    assert made.layer_average == 256 * 6 / 8
    assert [segment.layers for segment in made.segments] == [(0, 1, 2, 3, 4, 5)]


def test_visual_tokens_come_back_after_layers_they_skip() -> None:
    made = plan(recipe({"kind": "drop_layers", "layers": [2, 3], "visual_only": True}), SMALL)
    assert made.decoder_layers == tuple(range(8))
    assert [(segment.layers, segment.sees) for segment in made.segments] == [
        ((0, 1), "all"),
        ((2, 3), "text"),
        ((4, 5, 6, 7), "all"),
    ]
    assert made.decoder_visual_tokens == (256, 256, 0, 0, 256, 256, 256, 256)


def test_exit_is_meant_in_the_models_own_numbers() -> None:
    made = plan(recipe({"kind": "visual_exit", "layer": 4}, {"kind": "drop_layers", "layers": [0, 1, 5]}), SMALL)
    assert made.decoder_layers == (2, 3, 4, 6, 7)
    assert made.decoder_visual_tokens == (256, 256, 0, 0, 0)


def test_encoder_layers_after_the_feature_layer_never_run() -> None:
    made = plan(recipe({"kind": "drop_layers", "component": "encoder", "layers": [3, 5]}), LLAVA_15)
    assert made.encoder_layers == tuple(layer for layer in range(23) if layer not in (3, 5))


def test_cls_attention_is_read_at_the_last_layer_that_runs() -> None:
    drop = {"kind": "drop_layers", "component": "encoder", "layers": [22]}
    assert plan(recipe(CLS), LLAVA_15).stages[0].layers == (22,)
    assert plan(recipe(drop, CLS), LLAVA_15).stages[1].layers == (21,)


def test_attention_layers_count_from_the_encoders_end() -> None:
    selector = {"name": "cls_attention", "layers": [-2, 16]}
    assert plan(recipe({**CLS, "selector": selector}), LLAVA_15).stages[0].layers == (16, 22)


def test_original_positions_span_what_the_first_prune_chose_from() -> None:
    pruned = {**RANDOM, "positions": "original"}
    smaller = {"kind": "frequency_filter", "keep": 64}
    assert plan(recipe(RANDOM), SMALL).position_span == 14
    assert plan(recipe(pruned), SMALL).position_span == 256
    assert plan(recipe(smaller, pruned), SMALL).position_span == 64


def test_provisional_values() -> None:
    made = plan(
        recipe(
            {"kind": "frequency_filter", "keep": "auto"},
            {"kind": "visual_exit", "layer": "auto"},
            {"kind": "drop_layers", "layers": "auto", "count": 2},
        ),
        SMALL,
    )
    assert made.stages[0].grids_out == ((8, 8),)
    assert made.stages[1].layer == 4
    assert made.stages[2].layers == (5, 6)
    assert made.provisional == ("stages.0.keep", "stages.1.layer", "stages.2.layers")


def test_provisional_exit_leaves_room_for_the_other_stages() -> None:
    four = replace(SMALL, decoder=replace(SMALL.decoder, layers=4))
    made = plan(
        recipe(
            {"kind": "visual_exit", "layer": "auto"},
            {"kind": "drop_layers", "layers": "auto", "count": 2, "visual_only": True},
        ),
        four,
    )
    assert made.stages[0].layer == 3
    assert made.stages[1].layers == (1, 2)


# Faults -------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "keep more than there are": (
        [{**CLS, "keep": 257}],
        ["stages.0.keep: cannot keep 257 of 256 visual tokens; give at most 256 or a fraction"],
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


def test_negative_text_is_refused() -> None:
    with pytest.raises(InputError, match="text_tokens"):
        plan(recipe(), SMALL, text_tokens=-1)


def test_last_layers_end_at_the_feature_layer() -> None:
    spec = {"kind": "prune", "keep": 4, "selector": {"name": "cls_attention", "last": 2}}
    feature = SMALL.encoder.feature_layer
    assert plan(recipe(spec), SMALL).stages[0].layers == (feature - 1, feature)
    with pytest.raises(RecipeError, match=r"selector\.last: 99 layers, but only"):
        plan(recipe({**spec, "selector": {"name": "cls_attention", "last": 99}}), SMALL)


# Cuts and budgets -------------------------------------------------------------------------------------------


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
def test_no_budget_is_exceeded(average: int, ratio: float, layers: list[int]) -> None:
    made = plan(with_budget({"keep_average": average, "ratio": ratio}, PRUNE, *map(cut_at, layers)), LLAVA_15)
    assert made.layer_average <= average
    tokens = [stage.tokens_out for stage in made.stages]
    assert tokens == sorted(tokens, reverse=True)


def test_a_budget_counts_the_layers_in_front_of_the_first_cut() -> None:
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

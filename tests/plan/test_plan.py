"""Plans: the numbers of a recipe on a model, and the recipes that cannot work on it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plan.planning import CLS, RANDOM, planned
from tests.sizes import LLAVA_15, SMALL
from tests.strategies import in_any_order, in_data_order, recipes
from tests.tiny import recipe
from vtc.errors import RecipeError
from vtc.facts.layout import single_view, smaller_grid
from vtc.facts.model import ModelFacts
from vtc.plan import SegmentPlan, TokenPlan, check, plan
from vtc.recipe import Recipe, builtin_recipes, load_recipe

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
    if found.needs_experts:
        mixture = replace(facts, decoder=replace(facts.decoder, experts=8, active_experts=2))
        assert plan(found, mixture).flops["executed"] < plan(recipe(), mixture).flops["executed"]
        with pytest.raises(RecipeError, match="is dense here, it has no experts"):
            plan(found, facts)
        return
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

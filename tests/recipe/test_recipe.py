"""Recipes: what is accepted, what is refused and in which words, and that a recipe survives its own YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recipe.texts import PRUNE, with_stage
from tests.strategies import in_any_order, recipes
from vtc.errors import RecipeError
from vtc.recipe import SELECTORS, Recipe, builtin_recipes, load_recipe, parse_recipe
from vtc.recipe.yaml_lines import MAX_BYTES

# Canonical form ---------------------------------------------------------------------------------------------


@given(recipes(in_any_order))
def test_yaml_round_trip(data: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(data)
    again = parse_recipe(recipe.to_yaml())
    assert again == recipe
    assert again.digest == recipe.digest


@given(recipes(in_any_order))
def test_canonical_form_is_json_and_complete(data: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(data)
    canonical = json.loads(json.dumps(recipe.canonical()))
    assert canonical == recipe.canonical()
    assert Recipe.model_validate(canonical).canonical() == canonical


@given(recipes(in_any_order), st.text(max_size=20))
def test_digest_ignores_name_and_prose(data: dict[str, Any], prose: str) -> None:
    recipe = Recipe.model_validate(data)
    assert recipe.model_copy(update={"name": "other", "description": prose, "paper": prose}).digest == recipe.digest


def test_digest_ignores_whether_defaults_are_written() -> None:
    written = with_stage("{kind: prune, keep: 8, positions: renumber, selector: {name: random, seed: 0}}")
    assert parse_recipe(written).digest == parse_recipe(PRUNE).digest


def test_digest_changes_with_a_value() -> None:
    assert parse_recipe(PRUNE).digest != parse_recipe(PRUNE, overrides=["stages.0.keep=9"]).digest


def test_split_text_counts_only_where_it_is_asked_for() -> None:
    whole, split = parse_recipe(PRUNE + "split_text: false\n"), parse_recipe(PRUNE + "split_text: true\n")
    assert whole.digest == parse_recipe(PRUNE).digest
    assert (
        whole.digest == "9f6a838664a9774a66dfce250290792ad0e1c4e80b3f2b4471e327a386dc6637"
    )  # before there was the key
    assert split.digest != whole.digest
    assert parse_recipe(split.to_yaml()) == split
    assert "split_text" not in whole.to_yaml()  # which earlier releases read


def test_origin_does_not_count_in_comparison() -> None:
    assert parse_recipe(PRUNE, file="a.yaml") == parse_recipe("# moved down\n" + PRUNE, file="b.yaml")


def test_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(PRUNE).name = "other"  # type: ignore[misc]


def test_one_layer_is_a_list_of_one() -> None:
    stage = "{kind: prune, keep: 8, selector: {name: cls_attention, layers: 3}}"
    assert parse_recipe(with_stage(stage)).canonical()["stages"][0]["selector"]["layers"] == [3]


# Calibration ------------------------------------------------------------------------------------------------


def test_autos_are_named_and_resolved() -> None:
    recipe = parse_recipe(
        "version: 1\nname: test\nstages:\n"
        "  - {kind: frequency_filter, keep: auto}\n"
        "  - {kind: prune, keep: 4, selector: {name: cls_attention, layers: auto}}\n"
        "  - {kind: visual_exit, layer: auto}\n"
        "  - {kind: drop_layers, layers: auto, count: 2}\n"
    )
    assert recipe.autos == ["stages.0.keep", "stages.1.selector.layers", "stages.2.layer", "stages.3.layers"]
    values = {
        "stages.0.keep": 64,
        "stages.1.selector.layers": [2],
        "stages.2.layer": 5,
        "stages.3.layers": [6, 7],
    }
    resolved = recipe.resolved(values)
    assert resolved.autos == []
    assert resolved.canonical()["stages"] == [
        {"kind": "frequency_filter", "keep": 64, "preserve_mean": True},
        {
            "kind": "prune",
            "keep": 4,
            "selector": {"name": "cls_attention", "layers": [2], "last": 1},
            "positions": "renumber",
        },
        {"kind": "visual_exit", "layer": 5, "criterion": "agreement"},
        {
            "kind": "drop_layers",
            "component": "decoder",
            "layers": [6, 7],
            "visual_only": False,
        },
    ]


def test_only_autos_can_be_resolved() -> None:
    with pytest.raises(RecipeError, match=r"stages\.0\.keep is not left to calibration"):
        parse_recipe(PRUNE).resolved({"stages.0.keep": 3})


def test_energy_defaults_with_auto_only() -> None:
    assert parse_recipe(with_stage("{kind: frequency_filter, keep: auto}")).canonical()["stages"][0]["energy"] == 0.95
    assert "energy" not in parse_recipe(with_stage("{kind: frequency_filter, keep: 4}")).canonical()["stages"][0]


# Files and shipped recipes ----------------------------------------------------------------------------------


def test_a_bare_name_is_a_shipped_recipe_whatever_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").write_text(PRUNE)
    (tmp_path / "none.yaml").write_text(PRUNE)
    monkeypatch.chdir(tmp_path)
    assert load_recipe("none").stages == ()
    assert load_recipe("none.yaml").name == "test"
    assert load_recipe("./none").name == "test"


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'fastervlmm', did you mean 'fastervlm'\?"):
        load_recipe("fastervlmm")


@pytest.mark.parametrize(("name", "fault"), [("missing.yaml", "no such recipe file"), (".", "no shipped recipe")])
def test_missing_file(name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=fault):
        load_recipe(name)


def test_directory_and_binary_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a directory, not a regular file"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "binary.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="may hold 65536"):
        load_recipe(tmp_path / "huge.yaml")


def test_checkpoint_is_found_beside_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "learned.yaml"
    file.write_text(with_stage("{kind: prune, keep: 8, selector: {name: learned, checkpoint: part.safetensors}}"))
    recipe = load_recipe(file)
    with pytest.raises(RecipeError, match=r"learned.yaml:4: stages\.0\.selector\.checkpoint: no such file"):
        recipe.checkpoint(0)
    (tmp_path / "part.safetensors").write_bytes(b"")
    assert recipe.checkpoint(0) == (tmp_path / "part.safetensors").resolve()


def test_a_trained_selector_in_the_decoder_has_a_checkpoint_as_well(tmp_path: Path) -> None:
    file = tmp_path / "cut.yaml"
    cut = "{{kind: prune_in_decoder, layer: 1, keep: 8, selector: {{name: relevance, checkpoint: {}}}}}"
    file.write_text(with_stage(cut.format("part.safetensors")))
    with pytest.raises(RecipeError, match=r"cut.yaml:4: stages\.0\.selector\.checkpoint: no such file"):
        load_recipe(file).checkpoint(0)
    file.write_text(with_stage(cut.format("../part.safetensors")))
    with pytest.raises(RecipeError, match=r"cut.yaml:4: stages\.0\.selector\.checkpoint: is a path below"):
        load_recipe(file)
    file.write_text(with_stage(cut.format("auto")))
    recipe = load_recipe(file)
    assert recipe.autos == ["stages.0.selector.checkpoint"]
    assert recipe.canonical()["stages"][0]["selector"]["training"]["epochs"] == 100
    resolved = recipe.resolved({"stages.0.selector.checkpoint": "part.safetensors"})
    assert resolved.canonical()["stages"][0]["selector"] == {"name": "relevance", "checkpoint": "part.safetensors"}


def test_checkpoint_link_cannot_leave_the_directory(tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(b"")
    inside = tmp_path / "recipes"
    inside.mkdir()
    (inside / "part.safetensors").symlink_to(tmp_path / "outside.safetensors")
    file = inside / "learned.yaml"
    file.write_text(with_stage("{kind: prune, keep: 8, selector: {name: learned, checkpoint: part.safetensors}}"))
    with pytest.raises(RecipeError, match="leads out of the recipe's directory"):
        load_recipe(file).checkpoint(0)


def test_there_are_at_least_eight_shipped_recipes_and_the_null_one() -> None:
    assert len(builtin_recipes()) >= 8
    assert load_recipe("none").stages == ()


@pytest.mark.parametrize("name", builtin_recipes())
def test_shipped_recipe_is_named_after_its_file_and_opens_with_its_command(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    first = builtin_recipes()[name].read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# vtc compress {recipe.tried_on} --recipe {name} -o out/{name}"


def test_every_selector_says_what_it_is() -> None:
    for name, entry in SELECTORS.items():
        assert entry.model_fields["name"].default == name
        assert entry.summary
        assert entry.reads
        assert entry.where

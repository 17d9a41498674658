"""`vtc check`: a recipe's faults are found before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vtc.cli import main
from vtc.recipe import builtin_recipes, load_recipe

STAGE = "version: 1\nname: test\nstages:\n  - kind: prune\n    keep: 8\n    selector: cls_attention\n"


def check(*args: str) -> Result:
    """Run `vtc check`."""
    return CliRunner().invoke(main, ["check", *args])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", builtin_recipes())
def test_shipped_recipe_is_right(name: str) -> None:
    result = check(name)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "ok"


@pytest.mark.parametrize("name", builtin_recipes())
def test_shipped_recipe_fits_the_reference_model(name: str) -> None:
    result = check(name, "--model", load_recipe(name).tried_on, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["plan"]["visual_tokens_in"] >= 256


def test_faults_are_told_as_file_and_line(here: Path) -> None:
    (here / "mine.yaml").write_text(STAGE.replace("keep", "kep").replace("cls_attention", "clsattention"))
    result = check("mine.yaml")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "mine.yaml:5: stages.0.kep: unknown key, did you mean 'keep'?",
        "mine.yaml:6: stages.0.selector: unknown selector 'clsattention', did you mean 'cls_attention'?",
    ]


def test_stages_that_no_model_can_take_are_refused_without_one(here: Path) -> None:
    (here / "mine.yaml").write_text(STAGE + "  - kind: frequency_filter\n    keep: 4\n")
    result = check("mine.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("mine.yaml:7: stages.1: needs a whole grid")


def test_what_a_model_cannot_take_is_refused_with_it(here: Path, checkpoint: Path) -> None:
    (here / "mine.yaml").write_text(STAGE)
    assert check("mine.yaml", "--model", str(checkpoint)).exit_code == 0
    result = check("mine.yaml", "--set", "stages.0.keep=17", "--model", str(checkpoint))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "--set stages.0.keep=17: stages.0.keep: cannot keep 17 of 16 visual tokens; give at most 16 or a fraction"
    ]


def test_images_to_serve_are_the_models(here: Path, checkpoint: Path) -> None:
    assert "give a --model" in check("none", "--frames", "2").stderr
    result = check("none", "--model", str(checkpoint), "--tiles", "2x2")
    assert result.exit_code == 2
    assert result.stderr.endswith("leave out --tiles\n")
    assert len(result.stderr.splitlines()) == 1


def test_missing_recipe_and_missing_model(here: Path) -> None:
    assert check("missing.yaml").stderr == "missing.yaml: no such recipe file\n"
    result = check("none", "--model", "missing")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_smoke_takes_a_recipe_through_the_pipeline() -> None:
    result = check("combined", "--smoke", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["smoke"] == {"family": "llava", "result": "passed"}

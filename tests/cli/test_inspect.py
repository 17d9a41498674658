"""`vtc inspect`: the plan of a recipe on a model, or of a finished directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.tiny import recipe
from vtc.cli import main
from vtc.cli.output import with_unit
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import Origin, save_compressed
from vtc.models import model_digest
from vtc.models.base import VLMAdapter
from vtc.plan import plan


def inspect(*args: str | Path) -> Result:
    """Run `vtc inspect`."""
    return CliRunner().invoke(main, ["inspect", *map(str, args)])


def as_json(*args: str | Path) -> dict[str, Any]:
    """What `vtc inspect --json` says."""
    result = inspect(*args, "--json")
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    return data


@pytest.fixture
def compressed_dir(tmp_path: Path, checkpoint: Path, adapter: VLMAdapter) -> Path:
    """A compressed tiny model that keeps 5 of 16 visual tokens."""
    wanted = recipe({"kind": "prune", "keep": 5, "selector": "uniform"})
    origin = Origin(str(checkpoint), model_digest(checkpoint))
    return save_compressed(tmp_path / "work", tmp_path / "out", apply_recipe(adapter, wanted), wanted, origin, {})


def test_json_has_the_plan_beside_the_baseline() -> None:
    data = as_json("reference", "--recipe", "combined", "--set", "stages.1.layer=2")
    for key in ("plan", "baseline"):
        assert {"decoder_visual_tokens", "layer_average", "flops", "kv_bytes"} <= set(data[key])
        assert set(data[key]["flops"]) == {"exact", "fastv", "pyramiddrop"}
    layers = len(data["baseline"]["decoder_visual_tokens"])
    keep = round(0.25 * data["baseline"]["visual_tokens_in"])
    assert data["plan"]["decoder_visual_tokens"] == [keep] * 2 + [0] * (layers - 2)
    assert data["plan"]["layer_average"] == keep * 2 / layers
    assert data["plan"]["kv_bytes"] < data["baseline"]["kv_bytes"]


def test_without_a_recipe_the_plan_is_the_baseline(checkpoint: Path) -> None:
    data = as_json(checkpoint)
    assert data["recipe"] == "none"
    assert data["plan"] == data["baseline"]


def test_text_tokens_count(checkpoint: Path) -> None:
    assert as_json(checkpoint, "--text-tokens", "0")["plan"]["text_tokens"] == 0
    more, fewer = (as_json(checkpoint, "--text-tokens", n)["plan"]["kv_bytes"] for n in ("64", "8"))
    assert more > fewer


def test_table_names_stages_layers_and_what_is_assumed() -> None:
    result = inspect("reference", "--recipe", "combined")
    assert result.exit_code == 0
    for words in ("assumed until calibration: stages.1.layer", "cls_attention of encoder layer", "KV cache"):
        assert words in result.stdout


def test_every_budget_is_shown() -> None:
    asked = "reference", "--recipe", "fastervlm", "--set", "stages.0.keep=[16, 64]"
    table = inspect(*asked).stdout.splitlines()[-3:]
    assert [line.split()[0] for line in table] == ["budget", "16", "64"]
    data = as_json(*asked)
    assert [data["budgets"][keep]["keep"] for keep in ("16", "64")] == [16, 64]
    assert data["budgets"]["64"] == data["plan"]
    assert data["budgets"]["16"]["flops"]["exact"] < data["plan"]["flops"]["exact"]


def test_removed_layers_are_shown(checkpoint: Path) -> None:
    result = inspect(checkpoint, "--recipe", "depth-prune", "--set", "stages.0={kind: drop_layers, layers: [1, 2]}")
    assert [line.split() for line in result.stdout.splitlines() if line.startswith(("0 ", "1-2", "3 "))] == [
        ["0", "16"],
        ["1-2", "removed"],
        ["3", "16"],
    ]


def test_compressed_model_shows_its_own_plan(compressed_dir: Path) -> None:
    data = as_json(compressed_dir)
    assert data["plan"]["keep"] == 5
    assert data["baseline"]["keep"] == 16


def test_finished_directory_takes_no_other_recipe(compressed_dir: Path) -> None:
    result = inspect(compressed_dir, "--recipe", "none")
    assert result.exit_code == 2
    assert "inspect the model it was made from" in result.stderr


def test_changed_directory_is_refused(compressed_dir: Path) -> None:
    file = compressed_dir / "recipe.yaml"
    file.write_text(file.read_text().replace("keep: 5", "keep: 6"))
    result = inspect(compressed_dir)
    assert result.exit_code == 2
    assert "recipe.yaml has changed" in result.stderr


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "bundle"}', "\x00"])
def test_manifest_that_is_none_is_refused_in_a_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    result = inspect(tmp_path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_missing_model_is_refused_in_a_line(tmp_path: Path) -> None:
    result = inspect(tmp_path / "nothing")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_recipe_that_does_not_fit_is_refused(checkpoint: Path) -> None:
    result = inspect(checkpoint, "--recipe", "fastervlm", "--set", "stages.0.keep=99")
    assert result.exit_code == 2
    assert "cannot keep 99 of 16 visual tokens" in result.stderr


def test_plan_is_the_library_s(checkpoint: Path, adapter: VLMAdapter) -> None:
    assert as_json(checkpoint)["plan"] == plan(recipe(), adapter.facts).to_dict()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2787199360, "2.79 GB"), (8.4e15, "8400 TB")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert with_unit(value, "B") == text

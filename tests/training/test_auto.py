"""`checkpoint: auto`: the shipped pruner where it fits, a trained one elsewhere, an error where there are no data."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.training.conftest import RECIPE
from vtc.cli import main
from vtc.compressed.checkpoint import load_compressed
from vtc.errors import InputError
from vtc.models import load_adapter, model_digest
from vtc.models.base import VLMAdapter
from vtc.recipe import load_recipe, parse_recipe
from vtc.recipe.selectors import LearnedEntry
from vtc.reference import reference_dir, reference_part
from vtc.selectors.learned import Learned
from vtc.selectors.trained import log_path, read_metadata, save_trained
from vtc.staging import open_work
from vtc.training.auto import AutoTrained
from vtc.training.examples import load_examples


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(RECIPE.format(steps=2))
    return tmp_path / "small.yaml"


def test_compress_trains_a_pruner_and_writes_it_down(
    checkpoint: Path, source: Path, small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    result = invoke("compress", checkpoint, "--recipe", small, "--data", source, "-o", out)
    assert result.exit_code == 0, result.output
    files = {"manifest.json", "recipe.yaml", "state.safetensors", "pruner.safetensors", "pruner_log.csv"}
    assert {path.name for path in out.iterdir()} == files
    resolved = load_recipe(out / "recipe.yaml")
    assert not resolved.autos
    assert resolved.checkpoint(0) == (out / "pruner.safetensors").resolve()
    assert load_compressed(out)[0].keep_per_span == 4


def test_compress_without_data_says_so_before_loading_anything(
    checkpoint: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtc.calibrate.compress.load_adapter", lambda *_: pytest.fail("the model was loaded"))
    result = invoke("compress", checkpoint, "--recipe", small, "-o", tmp_path / "c")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "stages.0.selector.checkpoint" in result.stderr
    assert "give --data DIR" in result.stderr


def test_training_without_data_is_refused(adapter: VLMAdapter, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --data"):
        AutoTrained(adapter, "abc", tmp_path, None)(parse_recipe(RECIPE.format(steps=2)), 0)


def test_pruner_of_an_abandoned_recipe_is_not_published(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    with open_work(out, "test") as work:
        work.claim("pruner.safetensors")
        (work.path / "pruner.safetensors").write_bytes(b"of another recipe")
    assert invoke("compress", checkpoint, "--recipe", "none", "-o", out).exit_code == 0
    assert not (out / "pruner.safetensors").exists()


def test_shipped_pruner_is_used_for_its_own_model_only(
    checkpoint: Path, adapter: VLMAdapter, source: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("learnpruner-encoder")
    reference = load_adapter(reference_dir())
    path = AutoTrained(reference, model_digest(reference.path), tmp_path, None)(recipe, 0)
    assert path.read_bytes() == reference_part("pruner").read_bytes()
    assert log_path(path).read_bytes() == log_path(reference_part("pruner")).read_bytes()
    with pytest.raises(InputError, match="give --data"):
        AutoTrained(adapter, model_digest(checkpoint), tmp_path, None)(recipe, 0)


def test_later_stages_are_calibrated_after_the_pruner(checkpoint: Path, source: Path, tmp_path: Path) -> None:
    text = RECIPE.format(steps=2) + "- kind: visual_exit\n  layer: auto\n"
    (tmp_path / "two.yaml").write_text(text)
    command = ["compress", checkpoint, "--recipe", tmp_path / "two.yaml", "--data", source, "--samples", "2"]
    result = invoke(*command, "-o", tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert isinstance(load_recipe(tmp_path / "c" / "recipe.yaml").stages[1].layer, int)  # type: ignore[union-attr]


def test_a_pruner_named_in_a_recipe_needs_no_training(checkpoint: Path, tmp_path: Path) -> None:
    save_trained(tmp_path / "p.safetensors", Learned(LearnedEntry(), 32, (0, 1)), model_digest(checkpoint))
    (tmp_path / "r.yaml").write_text(
        "version: 1\nname: r\nstages:\n- kind: prune\n  keep: 4\n"
        "  selector: {name: learned, checkpoint: p.safetensors}\n"
    )
    assert invoke("compress", checkpoint, "--recipe", tmp_path / "r.yaml", "-o", tmp_path / "c").exit_code == 0


def test_shipped_pruner_keeps_what_the_answers_need() -> None:
    metadata = read_metadata(reference_part("pruner"))
    assert metadata["keep"] == "14"
    assert float(metadata["validation_accuracy"]) > float(metadata["unpruned_accuracy"]) - 0.05
    assert metadata["data"] == "reference"


def test_reference_scenes_are_not_those_of_the_test_writers() -> None:
    data = load_examples(load_adapter(reference_dir()), "reference", images=2, validation=2, seed=0)
    assert all(not item.image_id.startswith("test") for e in (*data.train, *data.validation) for item in e.items)

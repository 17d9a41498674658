"""A projector is trained by the shell's own way, exported, and answers as the compressed model does."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vtc
from tests.tiny import image, recipe
from tests.training.conftest import QUESTIONS, source
from vtc.compressed.checkpoint import load_compressed
from vtc.models import load_adapter
from vtc.models.random.tiny_families import write_tiny
from vtc.recipe.projectors import PROJECTORS
from vtc.selectors.trained import fits, log_path, read_metadata, trained_part
from vtc.training.distillation import _models, train_by_distillation
from vtc.training.job import TrainingJob, new_part

__all__ = ["source"]

TRAINING = {"steps": 20, "questions": 100, "validation": 4, "batch": 4, "learning_rate": 0.01}


@pytest.mark.parametrize("name", ["deco", "qmop"])
def test_it_is_trained_exported_and_run(name: str, checkpoint: Path, source: Path, tmp_path: Path) -> None:
    stage = {"kind": "project", "keep": 4, "projector": {"name": name, "training": TRAINING}}
    made = vtc.compress(checkpoint, recipe(stage), out=tmp_path / "c", data=source)
    with (tmp_path / "c" / "projector_log.csv").open() as file:
        log = list(csv.DictReader(file))
    assert float(log[-1]["loss"]) < float(log[0]["loss"])
    assert not made.warnings

    vtc.export(tmp_path / "c", out=tmp_path / "b", samples=2)
    model, resolved, _ = load_compressed(tmp_path / "c")
    assert resolved.stages[0].model_dump()["projector"]["checkpoint"] == "projector.safetensors"
    bundle = vtc.load(tmp_path / "b")
    for number, question in enumerate(QUESTIONS):
        with torch.inference_mode():
            asked = [[image(number)]], [model.adapter.chat(question)]
            (expected,) = model.generate(*asked, max_new_tokens=6)
        assert bundle.ask(image(number), question, max_new_tokens=6) == expected.text


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl"])
def test_it_is_trained_for_several_views_and_for_positions_of_three_axes(
    family: str, source: Path, tmp_path: Path
) -> None:
    write_tiny(family, tmp_path / "m", encoder_layers=2, decoder_layers=2)
    stage = {"kind": "project", "keep": 0.5, "projector": {"name": "deco", "training": TRAINING}}
    made = vtc.compress(tmp_path / "m", recipe(stage), out=tmp_path / "c", data=source)
    assert not made.warnings
    with (tmp_path / "c" / "projector_log.csv").open() as file:
        log = list(csv.DictReader(file))
    assert float(log[-1]["loss"]) < float(log[0]["loss"])


def test_an_elastic_one_is_trained_at_all_of_its_budgets(checkpoint: Path, source: Path, tmp_path: Path) -> None:
    """Each budget is drawn, all change the same parameters, and the file says what it is good for."""
    stage = {"kind": "project", "keep": [1, 4], "projector": {"name": "deco", "training": TRAINING}}
    path = tmp_path / "projector.safetensors"
    job = TrainingJob(load_adapter(checkpoint), "abc", recipe(stage), 0, path, str(source))
    models, part = _models(job)
    assert [model.plan.keep for model in models] == [1, 4]
    for model in models:
        own = trained_part(model.vision)
        assert own is not None
        assert all(mine is theirs for mine, theirs in zip(own.parameters(), part.parameters(), strict=True))
    train_by_distillation(job)
    assert read_metadata(path)["keep"] == "1,4"
    for keep in (1, 4):
        assert fits(path, new_part(job.adapter, job.recipe.at_budget(keep), 0), "abc")


def test_a_model_that_has_nothing_to_train_needs_no_data(checkpoint: Path, tmp_path: Path) -> None:
    stage = {"kind": "project", "keep": 4, "projector": "m3"}
    assert vtc.compress(checkpoint, recipe(stage), out=tmp_path / "c").plan.keep == 4


def test_those_that_are_trained_share_one_name_of_file() -> None:
    assert {getattr(entry, "stem", "projector") for entry in PROJECTORS.values()} == {"projector"}


def test_two_processes_train_as_one_does(checkpoint: Path, source: Path, tmp_path: Path) -> None:
    stage = {"kind": "project", "keep": 4, "projector": {"name": "qmop", "training": {**TRAINING, "steps": 3}}}
    (tmp_path / "r.yaml").write_text(recipe(stage).to_yaml())
    arguments = [checkpoint, "--recipe", tmp_path / "r.yaml", "--data", source, "-o", tmp_path / "two"]
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vtc.training")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *launch, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    files = [tmp_path / "one.safetensors", tmp_path / "two" / "projector.safetensors"]
    train_by_distillation(TrainingJob(load_adapter(checkpoint), "abc", recipe(stage), 0, files[0], str(source)))
    assert [read_metadata(file)["processes"] for file in files] == ["1", "2"]
    one, two = map(load_file, files)
    for name, value in one.items():  # AdamW makes much of what rounding makes of gradients near 0
        assert (two[name] - value).norm() < 1e-2 * value.norm() + 1e-6
    logs = [list(csv.DictReader(log_path(file).open())) for file in files]
    for mine, theirs in zip(*logs, strict=True):
        for key in ("loss", "kl", "validation_loss", "validation_accuracy"):
            assert float(mine[key]) == pytest.approx(float(theirs[key]), rel=1e-3)

"""The reference mixture of experts: how it begins, and a tiny run of its training."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from vtc.models import load_adapter
from vtc.reference.tokenizer import build_tokenizer
from vtc.reference.training import experts as module
from vtc.reference.training.checkpoint import model_config, save_checkpoint
from vtc.reference.training.experts import SMOKE, Scores, train
from vtc.reference.training.train import CsvLog
from vtc.reference.training.upcycle import EXPERTS, upcycle

TINY = replace(SMOKE, scenes=4, steps=3, batch=2, held_out=2, every=1)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the reference model's kind, with 1 encoder and 2 decoder layers."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model: Any = LlavaForConditionalGeneration(model_config(tokenizer, 1, 2, 32))
    path = tmp_path_factory.mktemp("dense") / "model"
    save_checkpoint(model, tokenizer, path)
    return path


def loaded(path: Path) -> Any:
    """The model by its own class."""
    return LlavaForConditionalGeneration.from_pretrained(path, dtype="auto")


def test_experts_make_the_block_that_they_are_of(dense: Path) -> None:
    before, after = loaded(dense), upcycle(loaded(dense), seed=3)
    own, made = before.state_dict(), after.state_dict()
    for name, value in made.items():
        assert ".mlp." in name or torch.equal(value, own[name])
    hidden = torch.randn(7, 32)
    layers = zip(before.model.language_model.layers, after.model.language_model.layers, strict=True)
    for old, new in layers:
        expected = old.mlp(hidden)
        found = new.mlp.experts(hidden, torch.arange(EXPERTS).expand(7, -1), torch.full((7, EXPERTS), 1 / EXPERTS))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    again, other = upcycle(loaded(dense), seed=3), upcycle(loaded(dense), seed=4)
    name = "model.language_model.layers.0.mlp.experts.down_proj"
    assert torch.equal(again.state_dict()[name], made[name])
    assert not torch.equal(other.state_dict()[name], made[name])


class Stopped(Exception):
    """What stops a training."""


@pytest.mark.parametrize("scores", get_args(Scores))
def test_training_moves_routers_and_experts_alone(
    dense: Path, tmp_path: Path, scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped goes on to what an undisturbed one ends at."""
    monkeypatch.setattr(module, "reference_dir", lambda: dense)
    config = replace(TINY, scores=scores)
    train(config, tmp_path / "out", tmp_path / "work")
    found, start = (loaded(path).state_dict() for path in (tmp_path / "out", tmp_path / "work/start"))
    moved = {name for name, value in found.items() if not torch.equal(value, start[name].to(value.dtype))}
    kinds = ("mlp.gate.weight", "mlp.experts.down_proj", "mlp.experts.gate_up_proj")
    assert moved == {f"model.language_model.layers.{n}.{kind}" for n in range(2) for kind in kinds}
    with (tmp_path / "out/training_log.csv").open() as file:
        told = {row["name"] for row in csv.DictReader(file)}
    assert ("information" in told) == (scores != "none")
    assert {"balance", "loss", "full_all", "oracle_all", "uniform_all"} <= told
    if scores != "gaussian":
        return

    class Stops(CsvLog):
        def __call__(self, row: Any) -> None:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(module, "CsvLog", Stops)
        with pytest.raises(Stopped):
            train(config, tmp_path / "again", tmp_path / "stopped")
    train(config, tmp_path / "again", tmp_path / "stopped")
    again = loaded(tmp_path / "again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in found.items())
    assert load_adapter(tmp_path / "out").facts.decoder.experts == EXPERTS

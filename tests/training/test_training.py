"""Training a pruner: repeatable, resumable, on several processes, and never touching the model."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import RECIPE
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.recipe.selectors import LearnedEntry
from vtc.recipe.selectors.learned import PrunerTraining
from vtc.selectors.learned import Learned
from vtc.selectors.trained import fits, load_trained, log_path, read_metadata
from vtc.training import pruner
from vtc.training.examples import Data, Encoded, EncodedExamples
from vtc.training.frozen import tensors_digest
from vtc.training.pruner import LOG_FIELDS, PrunerSubject, train_pruner
from vtc.training.state import state_path
from vtc.training.whitening import Whitening
from vtc.visual_tokens import VisualTokens

CONFIG = PrunerTraining(steps=6, imitation_steps=6, batch=4, images=20, validation=2, dropped=4)


@pytest.fixture
def subject(adapter: VLMAdapter) -> PrunerSubject:
    return PrunerSubject(adapter, "abc", (0, 1), keep=4, diversity=0.1)


def trained(subject: PrunerSubject, data: Data, path: Path, config: PrunerTraining = CONFIG) -> dict[str, torch.Tensor]:
    path.parent.mkdir(exist_ok=True)
    train_pruner(subject, data, config, path, "data")
    return load_file(path)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mask", ["top_k", "straight_through"])
def test_trains_the_pruner_and_nothing_else(subject: PrunerSubject, data: Data, tmp_path: Path, mask: str) -> None:
    before = tensors_digest(subject.adapter.model)
    config = CONFIG.model_copy(update={"mask": mask})
    first = trained(subject, data, tmp_path / "a" / "p.safetensors", config)
    assert tensors_digest(subject.adapter.model) == before
    assert same(first, trained(subject, data, tmp_path / "b" / "p.safetensors", config))
    other = config.model_copy(update={"seed": 1})
    assert not same(first, trained(subject, data, tmp_path / "c" / "p.safetensors", other))
    assert all(bool(tensor.isfinite().all()) for tensor in first.values())


def test_training_begins_as_an_imitation_of_cls_attention(subject: PrunerSubject, data: Data, tmp_path: Path) -> None:
    images = EncodedExamples(subject.adapter, subject.layers, data.beginning, data.train, memory=2**30)
    encoded = images.get(range(len(images)))
    wanted = torch.cat([one.attention for one in encoded if one.attention is not None])
    wanted = wanted / wanted.sum(dim=-1, keepdim=True)

    def distance(imitation_steps: int) -> float:
        path = tmp_path / str(imitation_steps) / "p.safetensors"
        config = {"steps": 1, "learning_rate": 1e-9, "imitation_steps": imitation_steps}
        trained(subject, data, path, CONFIG.model_copy(update=config))
        pruner = subject.selector()
        load_trained(path, pruner, "abc")
        tokens = images.tokens(range(len(images)))
        found = pruner.score(tokens).detach().log_softmax(dim=-1)
        return float((wanted * (wanted.log() - found)).sum(dim=-1).mean())

    assert distance(200) < 0.5 * distance(0)


def test_file_says_what_it_is_and_loads(subject: PrunerSubject, data: Data, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    trained(subject, data, path)
    metadata = read_metadata(path)
    assert metadata["encoder_layers"] == "0,1"
    assert {"validation_accuracy", "vtc_version", "steps", "seed", "keep", "images", "mask"} <= metadata.keys()
    deeper = Learned(LearnedEntry(), 32, (0, 1, 2))
    assert fits(path, subject.selector(), "abc")
    assert not fits(path, subject.selector(), "abd")
    assert not fits(path, deeper, "abc")
    load_trained(path, subject.selector(), "abc")
    with pytest.raises(InputError, match="for encoder layers 0,1, here it is 0,1,2; train it again"):
        load_trained(path, deeper, "abc")
    with log_path(path).open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == LOG_FIELDS
    assert [int(row["step"]) for row in rows] == list(range(1, 7))


def test_interrupted_training_ends_as_an_uninterrupted_one(
    subject: PrunerSubject, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(subject, data, tmp_path / "a" / "p.safetensors")
    path = tmp_path / "b" / "p.safetensors"
    step = pruner._Run._step

    def interrupted(run: pruner._Run, number: int) -> dict[str, float]:
        if number == 4:
            raise KeyboardInterrupt
        return step(run, number)

    monkeypatch.setattr(pruner._Run, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(subject, data, path)
    assert state_path(path).is_file()
    assert not path.exists()
    done: list[int] = []
    monkeypatch.setattr(pruner._Run, "_step", lambda run, number: done.append(number) or step(run, number))
    assert same(whole, trained(subject, data, path))
    assert done == [4, 5]
    assert same(whole, trained(subject, data, path))  # finished: nothing is done again
    assert done == [4, 5]


@pytest.mark.parametrize("mask", ["top_k", "straight_through"])
def test_padding_takes_no_part_while_there_is_another_token(
    subject: PrunerSubject, data: Data, tmp_path: Path, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a 4 x 4 grid 9 tokens are padding, and of the 7 others 4 are to be kept."""
    padding = torch.arange(16).expand(4, -1) >= 7
    found = pruner.visual_tokens

    def padded(encoded: Sequence[Encoded], device: torch.device) -> VisualTokens:
        tokens = found(encoded, device)
        return replace(tokens, padding=padding[: len(encoded)] if len(encoded) == 4 else None)

    policies: list[torch.Tensor] = []
    participants = pruner._participants

    def noted(policy: torch.Tensor, *more: Any) -> torch.Tensor:
        policies.append(policy)
        return participants(policy, *more)

    monkeypatch.setattr(pruner, "visual_tokens", padded)
    monkeypatch.setattr(pruner, "_participants", noted)
    changes = {"mask": mask, "imitation_steps": 0, "budgets": (1.0, 1.0)}
    trained(subject, data, tmp_path / "a" / "p.safetensors", CONFIG.model_copy(update=changes))
    assert len(policies) == CONFIG.steps
    assert not any(bool(policy[padding].any()) for policy in policies)
    assert all(bool(policy.any()) for policy in policies)


def command(checkpoint: Path, source: Path, out: Path, steps: int, *launch: str) -> list[str]:
    recipe = out.with_suffix(".yaml")
    recipe.write_text(RECIPE.format(steps=steps))
    arguments = [checkpoint, "--recipe", recipe, "--data", source, "-o", out]
    return [sys.executable, *launch, "-m", "vtc.training", *map(str, arguments)]


def test_killed_training_goes_on(checkpoint: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(checkpoint, source, out, 2000), stderr=subprocess.PIPE)
    state = state_path(out / "pruner.safetensors")
    deadline = time.monotonic() + 120
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert state.is_file()
    assert not (out / "pruner.safetensors").exists()
    steps = read_metadata(state)["step"]
    assert 0 < int(steps) < 2000


def test_two_processes_give_one_pruner(checkpoint: Path, source: Path, tmp_path: Path) -> None:
    # `accelerate launch` starts several processes on GPUs only; on CPUs torch's launcher does.
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    line = command(checkpoint, source, tmp_path / "out", 4, *launch)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert read_metadata(tmp_path / "out" / "pruner.safetensors")["processes"] == "2"
    tensors = load_file(tmp_path / "out" / "pruner.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert read_metadata(tmp_path / "out" / "pruner.safetensors")["spread_over_processes"] == "0.0"


def test_folded_whitening_changes_no_score() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 8, generator=generator) @ torch.randn(8, 8, generator=generator) * 30 + 5
    whitening = Whitening.of(features)
    white = whitening(features)
    assert torch.cov(white.T).diagonal().sub(1).abs().max() < 0.5
    linear = torch.nn.Linear(8, 4)
    expected = linear(white)
    whitening.fold(linear)
    torch.testing.assert_close(linear(features), expected, atol=1e-4, rtol=1e-4)

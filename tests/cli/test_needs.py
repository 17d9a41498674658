"""Every verb refuses, before any weight is read, what the machine has no room for; ``vtc inspect`` tells it before."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import vtc.needs
from tests.evaluate.bundles import bundle_with_plan
from tests.runtime.toy import make_toy
from tests.tiny import image, recipe
from vtc.bundle.manifest import load_manifest
from vtc.cli import main
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import Origin, save_compressed
from vtc.errors import OutOfResources
from vtc.models import model_digest
from vtc.models.base import VLMAdapter
from vtc.plan.costs import LIBRARIES
from vtc.runtime.needs import check_room
from vtc.runtime.nvidia import Gpu
from vtc.runtime.options import RuntimeOptions

UNIFORM = "stages.0={kind: prune, keep: 5, selector: uniform}"
LEARNED = "stages.0={kind: prune, keep: 5, selector: {name: learned, training: {steps: 7}}}"
SIZES = ("ram", "mapped", "gpu", "disk")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vtc")


def needs(*args: str | Path) -> dict[str, Any]:
    """What ``vtc inspect --json`` tells of verbs."""
    result = run("inspect", *args, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)["needs"]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, adapter: VLMAdapter) -> Path:
    """With a compressed model, a bundle, an image and a data set."""
    place = tmp_path_factory.mktemp("needs")
    wanted = recipe({"kind": "prune", "keep": 5, "selector": "uniform"})
    origin = Origin(str(checkpoint), model_digest(checkpoint))
    save_compressed(place / "work", place / "compressed", apply_recipe(adapter, wanted), wanted, origin, {})
    bundle_with_plan(make_toy(), place / "bundle")
    image(0).save(place / "0.png")
    line = {"id": "0", "image": "0.png", "question": "what ?", "answers": ["two"], "category": "c"}
    (place / "data.jsonl").write_text(json.dumps(line) + "\n")
    return place


def of(verb: str, place: Path, checkpoint: Path) -> list[str | Path]:
    """A command."""
    out: tuple[str | Path, ...] = ("-o", place / "out")
    commands: dict[str, list[str | Path]] = {
        "compress": ["compress", checkpoint, "--recipe", "uniform", "--set", UNIFORM, "--dtype", "bfloat16", *out],
        "train": ["compress", checkpoint, "--recipe", "uniform", "--set", LEARNED, "--data", place, *out],
        "export": ["export", place / "compressed", *out],
        "show": ["show", place / "0.png", place / "compressed", "-o", place / "kept.png"],
        "show a recipe": [
            *("show", place / "0.png", "--model", checkpoint, "--recipe", "uniform", "--set", UNIFORM),
            *("-o", place / "kept.png"),
        ],
        "validate": ["validate", place / "compressed", "--data", place],
        "validate the original": ["validate", "--against", checkpoint, "--data", place],
        "validate a bundle": ["validate", place / "bundle", "--against", checkpoint, "--data", place],
        "run": ["run", place / "bundle", "--image", place / "0.png", "--prompt", "what ?"],
    }
    return commands[verb]


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("compress", "give --dtype auto"),
        ("train", "give --dtype auto"),
        ("export", "a machine with more memory"),
        ("show", "vtc show takes about"),
        ("show a recipe", "vtc show takes about"),
        ("validate", "vtc validate takes about"),
        ("validate the original", "vtc validate takes about"),
        ("validate a bundle", "vtc validate takes about"),
        ("run", "vtc export --precision q4"),
    ],
)
def test_every_verb_refuses_what_has_no_room_in_memory(
    verb: str, words: str, place: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vtc.needs, "available_ram", lambda: 10)
    monkeypatch.setattr("vtc.models.base.load_weights", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("vtc.runtime.onnxruntime.graph.Graph", lambda *_: pytest.fail("a graph was loaded"))
    result = run(*of(verb, place, checkpoint))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert "of memory, and 1e-08 GB are free" in line
    assert words in line
    assert not (place / "out").exists()


def test_a_training_is_refused_that_fits_not_though_the_model_does(
    place: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = needs(checkpoint, "--recipe", "uniform", "--set", LEARNED)
    most, least = (found[verb]["ram"] - LIBRARIES for verb in ("train stages.0", "compress"))
    assert most > least
    monkeypatch.setattr(vtc.needs, "available_ram", lambda: (most + least) // 2)
    result = run(*of("train", place, checkpoint))
    assert result.exit_code == 2
    assert "training stages.0 of uniform takes about" in result.stderr


@pytest.mark.parametrize("verb", ["compress", "export"])
def test_what_has_no_room_on_the_disk_is_refused(
    verb: str, place: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    monkeypatch.setattr("vtc.models.base.load_weights", lambda *_: pytest.fail("weights were read"))
    result = run(*of(verb, place, checkpoint))
    assert result.exit_code == 2, result.output
    assert f"of disk at {place / 'out'}, and 1e-07 GB are free" in result.stderr


def test_what_is_fetched_as_it_runs_is_not_refused(
    place: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vtc.needs, "available_ram", lambda: 10)
    out = tmp_path / "out"
    result = run("compress", checkpoint, "--recipe", "uniform", "--set", UNIFORM, "--device", "auto", "-o", out)
    assert result.exit_code == 0, result.output


def test_inspect_tells_every_verb(checkpoint: Path, adapter: VLMAdapter) -> None:
    found = needs(checkpoint, "--recipe", "uniform", "--set", LEARNED, "--dtype", "bfloat16")
    verbs = ["show", "compress", "train stages.0", "export fp32", "export fp16", "export q4"]
    assert list(found) == [*verbs, "run fp32", "run fp16", "run q4", "validate, 100 questions"]
    weights = 2 * sum(weight.numel() for weight in adapter.model.parameters())
    assert weights < found["compress"]["ram"] - LIBRARIES < 1.15 * weights
    assert all(need["gpu"] == 0 for need in found.values())
    assert all(need["seconds"] > 0 for verb, need in found.items() if verb not in ("run fp16", "run q4"))
    assert found["export fp16"]["disk"] < found["export fp32"]["disk"] < found["export q4"]["disk"]
    assert {verb for verb, need in found.items() if need["disk"]} == {"compress", *verbs[3:]}
    assert all(isinstance(need[size], int) for need in found.values() for size in SIZES)


def test_weights_in_their_own_type_are_read_in_place(checkpoint: Path) -> None:
    own, narrow = (needs(checkpoint, "--dtype", dtype)["compress"] for dtype in ("auto", "bfloat16"))
    assert own["mapped"] == 2 * (narrow["ram"] - own["ram"]) > 0  # the tiny model's files have float32
    assert narrow["mapped"] == 0


def test_on_a_gpu_weights_take_its_memory(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtc.compressed.needs.gpu_memory", lambda: None)  # nor is there one to be measured
    found = needs(checkpoint, "--device", "cuda", "--dtype", "bfloat16")
    elsewhere = needs(checkpoint, "--dtype", "bfloat16")
    assert found["show"]["gpu"] == elsewhere["show"]["ram"] - LIBRARIES
    assert found["show"]["ram"] == LIBRARIES
    assert found["show"]["seconds"] is None
    assert found["export fp32"]["ram"] == elsewhere["export fp32"]["ram"]


def test_a_model_larger_than_the_gpu_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtc.compressed.needs.gpu_memory", lambda: 10)
    asked = "compress", checkpoint, "--recipe", "uniform", "--set", UNIFORM, "--device", "cuda", "-o", tmp_path / "out"
    result = run(*asked)
    assert result.exit_code == 2
    assert "of GPU memory, and 1e-08 GB are free; give --dtype auto" in result.stderr


def test_a_bundle_larger_than_the_gpu_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(place / "bundle")
    backend: Any = SimpleNamespace(variant="fp32", provider="cuda")
    for size, fits in ((manifest.graph_bytes("fp32"), True), (10, False)):
        monkeypatch.setattr("vtc.runtime.needs.gpu_here", lambda size=size: Gpu("9.0", size, integrated=False))
        with nullcontext() if fits else pytest.raises(OutOfResources, match="GPU memory"):
            check_room(manifest, RuntimeOptions(), backend)


def test_inspect_tells_of_a_compressed_model_and_of_a_bundle(place: Path) -> None:
    assert "show" in needs(place / "compressed")
    (only,) = needs(place / "bundle").items()
    assert only[0] == "run fp32"
    assert only[1]["ram"] > 0
    table = run("inspect", place / "bundle").stdout
    assert "files in place" in table
    assert "not known" in table


def test_a_configuration_without_weights_has_no_needs(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    assert needs(copy) == {}
    assert "GPU memory" not in run("inspect", copy).stdout

"""`vtc compress` and `vtc export` as a user meets them: done, refused, killed half-way."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from exporters.parity import Parity
from tests.tiny import image
from vtc.artifact import staging_dir
from vtc.cli import main
from vtc.cli.export import _told
from vtc.resume import read_notes

RECIPE = "version: 1\nname: small\nstages:\n- kind: prune\n  keep: 5\n  selector: uniform\n"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, words: str) -> None:
    """One clear line on stderr, exit code 2."""
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def compressed(checkpoint: Path, recipe_file: Path, tmp_path: Path) -> Path:
    result = invoke("compress", checkpoint, "--recipe", recipe_file, "-o", tmp_path / "compressed")
    assert result.exit_code == 0, result.output
    return tmp_path / "compressed"


def test_compress_then_export(compressed: Path, tmp_path: Path) -> None:
    assert {path.name for path in compressed.iterdir()} == {"manifest.json", "recipe.yaml", "state.safetensors"}
    targets = ["--target", "jetson-orin-jp6", "--target", "rtx"]
    result = invoke("export", compressed, "-o", tmp_path / "bundle", "--samples", "2", *targets)
    assert result.exit_code == 0, result.output
    assert "fp32 is exported right" in result.stdout
    assert "greedy answers equal 100%" in result.stdout
    assert result.stderr.splitlines()[-1] == f"next: vtc build {tmp_path / 'bundle'} --target jetson-orin-jp6"
    assert "suits jetson-orin-jp6, rtx" in result.stdout
    assert not staging_dir(tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("same", "verdict"),
    [(1.0, "good: no answer changed"), (0.9, "most answers stayed"), (0.2, "many answers changed, rightly or wrongly")],
)
def test_what_rounding_changes_is_judged_in_words(same: float, verdict: str) -> None:
    far = Parity(10, 0.0, 1.0, 2.0, same, 0)
    weights, activations = replace(far, greedy_match=1.0, original=far), replace(far, layers=0.001)
    for figures in (weights, activations):
        line = _told("q8f16", figures)
        assert line.startswith("q8f16 is exported right")
        assert verdict in line.partition("What rounding itself changes: ")[2]


def test_set_overrides_the_recipe(checkpoint: Path, recipe_file: Path, tmp_path: Path) -> None:
    result = invoke("compress", checkpoint, "--recipe", recipe_file, "--set", "stages.0.keep=3", "-o", tmp_path / "c")
    assert "16 -> 3 visual tokens" in result.stdout


def test_keep_beyond_the_models_tokens(checkpoint: Path, recipe_file: Path, tmp_path: Path) -> None:
    result = invoke("compress", checkpoint, "--recipe", recipe_file, "--set", "stages.0.keep=17", "-o", tmp_path / "c")
    assert result.exit_code == 2
    assert "17" in result.stderr
    assert not (tmp_path / "c").exists()
    assert not staging_dir(tmp_path / "c").exists()


def test_missing_model(recipe_file: Path, tmp_path: Path) -> None:
    refused(invoke("compress", tmp_path / "no", "--recipe", recipe_file, "-o", tmp_path / "c"), "no such checkpoint")


def test_calibration_without_data(checkpoint: Path, tmp_path: Path) -> None:
    refused(invoke("compress", checkpoint, "--recipe", "visual-exit", "-o", tmp_path / "c"), "give --data")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "orin"], "target 'orin' is not known; targets: rtx, "),
        (
            ["--target", "jetson-orin-jp6", "--opset", "22"],
            "--opset 22 is above 20, the highest that target",
        ),
    ],
)
def test_export_for_a_target_that_cannot_be(tmp_path: Path, options: list[str], words: str) -> None:
    refused(invoke("export", tmp_path / "nothing", "-o", tmp_path / "bundle", *options), words)


def test_export_of_something_else(tmp_path: Path) -> None:
    refused(invoke("export", tmp_path, "-o", tmp_path / "b"), "not a compressed")


def test_export_of_a_changed_directory(compressed: Path, tmp_path: Path) -> None:
    (compressed / "state.safetensors").write_bytes(b"?")
    refused(invoke("export", compressed, "-o", tmp_path / "b"), "has changed")


def test_users_files_are_never_overwritten(compressed: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("precious")
    refused(invoke("export", compressed, "-o", mine), "not a bundle")
    assert (mine / "thesis.tex").read_text() == "precious"


def spawn(*arguments: str | Path, limit: int | None = None) -> subprocess.Popen[str]:
    def restrict() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs have it ignored
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "vtc.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restrict,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_export_leaves_no_bundle_and_goes_on(compressed: Path, tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "bundle"
    process = spawn("export", compressed, "-o", out, "--samples", "2")
    first = staging_dir(out) / "onnx/vision_encoder.onnx"
    deadline = time.monotonic() + 300
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, how)
    _, errors = process.communicate()
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), errors
    assert not out.exists()
    result = invoke("export", compressed, "-o", out, "--samples", "2")
    assert result.exit_code == 0, result.output
    assert not staging_dir(out).exists()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dozen questions about a dozen images."""
    directory = tmp_path / "data"
    directory.mkdir()
    lines = []
    for number in range(12):
        image(number).save(directory / f"{number}.png")
        entry = {
            "id": str(number),
            "image": f"{number}.png",
            "question": "what is it ?",
            "answers": ["a"],
            "category": "c",
        }
        lines.append(json.dumps(entry))
    (directory / "data.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def test_killed_calibration_leaves_nothing_half_done_and_goes_on(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "compressed"
    command = ["compress", checkpoint, "--recipe", "visual-layer-drop", "--data", data, "-o", out]
    process = spawn(*command)
    deadline = time.monotonic() + 300
    while not (notes := list(staging_dir(out).glob(".measurements-*.json"))) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    measured = read_notes(notes[0], dict[str, Any])
    assert measured
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    kept = json.loads((out / "manifest.json").read_text())["calibration"]
    assert measured.items() <= kept.items()
    assert not staging_dir(out).exists()


def test_full_disk_leaves_no_bundle(compressed: Path, tmp_path: Path) -> None:
    process = spawn("export", compressed, "-o", tmp_path / "bundle", "--samples", "2", limit=20_000)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "cannot be written" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "bundle").exists()

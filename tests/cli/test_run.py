"""`vtc run` at the shell: answers on stdout, faults as one line with an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from tests.runtime.toy import make_toy, write_toy_bundle
from vtc.cli import main
from vtc.inputs.generation import GenerationRules


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle."""
    return write_toy_bundle(make_toy(), tmp_path_factory.mktemp("run") / "bundle")


@pytest.fixture(scope="module")
def photo(bundle: Path) -> str:
    """An image file."""
    path = bundle.parent / "photo.png"
    Image.radial_gradient("L").save(path)
    return str(path)


def run(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vtc.cli", "run", str(bundle), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_answer_goes_to_stdout_and_json_tells_more(bundle: Path, photo: str) -> None:
    plain = run(bundle, "--image", photo, "--prompt", "what is red", "--max-new-tokens", "5")
    assert (plain.returncode, plain.stderr) == (0, f"next: vtc validate {bundle}\n")
    full = run(bundle, "--image", photo, "--prompt", "what is red", "--max-new-tokens", "5", "--json")
    answer = json.loads(full.stdout)
    assert answer["answer"] == plain.stdout.strip()
    assert answer["visual_tokens"] == 3
    assert len(answer["token_ids"]) <= 5
    assert {"ttft_ms", "step_ms", "segment_lengths", "kv_bytes"} <= answer["timings"].keys()


def test_raw_prompt_is_taken_as_it_is(bundle: Path, photo: str) -> None:
    chat = run(bundle, "--image", photo, "--prompt", "is red")
    raw = run(bundle, "--image", photo, "--raw-prompt", "--prompt", "<s><image> is red what")
    assert chat.stdout == raw.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "PHOTO", "--raw-prompt", "--prompt", "what"], "0 <image> placeholder(s) for 1 image(s)"),
        (["--image", "PHOTO", "--raw-prompt", "--prompt", "<image><image>"], "2 <image> placeholder(s) for 1 image"),
        (["--image", "PHOTO", "--prompt", "red " * 300], "longer than the model's context of 200"),
        (["--image", "missing.png", "--prompt", "red"], "no such image file"),
        (
            ["--image", "PHOTO", "--prompt", "red", "--provider", "abacus"],
            "'abacus' is not in the installed onnxruntime",
        ),
        (["--prompt", "red", "--backend", "tensorrt"], "holds no engines; make some with vtc build"),
        (["--prompt", "red", "--backend", "abacus"], "'abacus' is not one of 'onnxruntime', 'openvino', 'tensorrt'"),
        (
            ["--prompt", "red", "--backend", "tensorrt", "--provider", "cpu"],
            "--provider goes with --backend onnxruntime",
        ),
        (["--prompt", "red", "--backend", "tensorrt", "--threads", "2"], "--threads goes with --backend onnxruntime"),
        (["--prompt", "red", "--engines", "here"], "--engines goes with --backend tensorrt"),
        (["--prompt", "red", "--backend", "tensorrt", "--engines", "here"], "here: "),
        (["--image", "PHOTO", "--prompt", "red", "--precision", "fp8"], "holds no fp8 graphs"),
        (["--image", "PHOTO", "--prompt", "red", "--temperature", "-1"], "--temperature"),
        (["--image", "PHOTO"], "--prompt"),
        (["--prompt", "red", "--keep", "2"], "has no budget of 2 visual tokens; it has one for all questions"),
        (["--prompt", "red", "--entropy", "0.5"], "there is one budget for all questions here"),
        (["--prompt", "red", "--keep", "2", "--entropy", "0.5"], "give one of the two"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    bundle: Path, photo: str, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = run(bundle, *[photo if argument == "PHOTO" else argument for argument in arguments])
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr


def test_images_that_are_no_whole_clips_are_refused(photo: str, tmp_path: Path) -> None:
    clips = write_toy_bundle(make_toy(), tmp_path / "bundle", frames=4)
    failed = run(clips, *["--image", photo] * 3, "--prompt", "red")
    assert failed.returncode == 2
    message = "error: 3 image(s) do not make up clips of 4 frames; give every frame of a clip, in order\n"
    assert (failed.stdout, failed.stderr) == ("", message)


def test_damaged_bundle_is_one_line_and_exit_code_2(tmp_path: Path, photo: str) -> None:
    bundle = write_toy_bundle(make_toy(), tmp_path / "bundle")
    graph = bundle / "onnx/vision_encoder.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    failed = run(bundle, "--image", photo, "--prompt", "red")
    assert failed.returncode == 2
    assert "onnx/vision_encoder.onnx has changed since it was written" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    missing = run(tmp_path / "nowhere", "--image", photo, "--prompt", "red")
    assert missing.returncode == 2
    assert "no such bundle directory" in missing.stderr


def test_a_checkpoint_that_draws_its_answers_is_told(bundle: Path, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = GenerationRules(sampling={"temperature": 0.7})
    monkeypatch.setattr("vtc.bundle.facts.GenerationRules", lambda **_: rules)
    asked = ["run", str(bundle), "--image", photo, "--prompt", "what is red", "--max-new-tokens", "1"]
    said = [CliRunner().invoke(main, [*asked, *more]).stderr for more in ([], ["--temperature", "0.5"])]
    assert ["draws answers at random (temperature 0.7)" in text for text in said] == [True, False]

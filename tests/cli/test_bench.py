"""`vtc bench` as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.evaluate.bundles import bundle_with_plan
from tests.runtime.nvidia import nvidia, write_engine_set
from tests.runtime.toy import make_toy
from tests.tiny import image
from vtc.cli import main

QUICK = ("--repeats", "3", "--warmup", "1", "--max-new-tokens", "3", "--provider", "cpu")


def vtc(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vtc")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A toy with all its visual tokens, and pruned."""
    root = tmp_path_factory.mktemp("bundles")
    return bundle_with_plan(make_toy(keep=16), root / "whole"), bundle_with_plan(make_toy(keep=3), root / "pruned")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image(0).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_two_bundles_side_by_side(bundles: tuple[Path, Path], picture: Path, tmp_path: Path) -> None:
    whole, pruned = bundles
    out = tmp_path / "bench.json"
    result = vtc(
        "bench", pruned, "--against", whole, "--image", picture, "--prompt", "what ?", *QUICK, "--json", "-o", out
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert json.loads(out.read_text()) == report
    original, small = report["runs"]
    assert (original["name"], small["name"]) == ("original", "pruned")
    for run in report["runs"]:
        assert run["ttft_ms"]["p50"] <= run["ttft_ms"]["p90"]
        assert run["tpot_ms"]["p50"] > 0
        assert run["peak_memory_mb"] > 0
        assert run["rounds"] == 3
    assert original["segment_lengths"][0] - small["segment_lengths"][0] == 13
    assert (original["flops"], small["flops"]) == (16000, 3000)
    assert set(report["speedup"]) == {"prefill", "ttft", "tpot", "e2e", "ci95"}
    assert "peak memory" in report["protocol"]["terms"]


def test_a_bundle_alone_as_a_table(bundles: tuple[Path, Path]) -> None:
    result = vtc("bench", bundles[1], *QUICK, "--no-memory")
    assert result.exit_code == 0, result.output
    assert "pruned" in result.stdout
    assert "speedup" not in result.stdout


def test_engines_are_timed_against_engines(
    bundles: tuple[Path, Path], picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pruned = (shutil.copytree(bundle, tmp_path / bundle.name) for bundle in bundles)
    nvidia(monkeypatch)
    write_engine_set(whole)
    engines = write_engine_set(pruned).rename(tmp_path / "engines")
    options = ("--backend", "tensorrt", "--engines", engines, "--against", whole, "--image", picture, "--no-memory")
    result = vtc("bench", pruned, *options, *QUICK[:-2], "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [run["provider"] for run in report["runs"]] == ["tensorrt", "tensorrt"]
    assert report["environment"]["provider"] == "tensorrt"
    refused = vtc("bench", pruned, *options, "--max-new-tokens", "99")
    assert refused.exit_code == 2
    assert "--max-new-tokens 99" in refused.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["missing"], "no such"),
        (["{bundle}", "--prompt", "what ?"], "--image"),
        (["{bundle}", "--image", "missing.png"], "missing.png"),
        (["{bundle}", "--against", "missing"], "missing"),
        (["{bundle}", "--provider", "abacus"], "abacus"),
        (["{bundle}", "--precision", "fp8"], "fp8"),
    ],
)
def test_bad_input_is_one_line(
    bundles: tuple[Path, Path], args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = vtc("bench", *(arg.replace("{bundle}", str(bundles[1])) for arg in args))
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_bundle_made_from_another_checkpoint_is_refused(bundles: tuple[Path, Path], checkpoint: Path) -> None:
    result = vtc("bench", bundles[1], "--against", checkpoint, *QUICK)
    assert result.exit_code == 2
    assert "another checkpoint" in result.stderr


def test_only_an_uncompressed_bundle_is_called_the_original(bundles: tuple[Path, Path], picture: Path) -> None:
    whole, pruned = bundles
    result = vtc("bench", whole, "--against", pruned, "--image", picture, *QUICK, "--no-memory", "--json")
    assert [run["name"] for run in json.loads(result.stdout)["runs"]] == ["pruned", "whole"]


@pytest.mark.slow
def test_a_checkpoint_is_exported_once_and_kept(
    checkpoint: Path, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for step in (
        ("compress", checkpoint, "--recipe", "uniform", "--set", "stages.0.keep=4", "-o", tmp_path / "c"),
        ("export", tmp_path / "c", "-o", tmp_path / "b", "--samples", "1"),
    ):
        done = vtc(*step)
        assert done.exit_code == 0, done.output
    command = ("bench", tmp_path / "b", "--against", checkpoint, "--image", picture, *QUICK, "--no-memory", "--json")
    first, second = vtc(*command), vtc(*command)
    assert first.exit_code == second.exit_code == 0, first.output
    assert "the original: exporting" in first.stderr
    assert "the original: exporting" not in second.stderr
    original, small = json.loads(second.stdout)["runs"]
    assert (original["visual_tokens"], small["visual_tokens"]) == (16, 4)
    assert original["flops"] > small["flops"]

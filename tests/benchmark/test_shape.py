"""`vtc bench --shape`: published shapes with random weights, measured beside what the plan predicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from tests.tiny import RECIPES, recipe
from vtc.benchmark.replay import run_again
from vtc.benchmark.report import Rounds
from vtc.benchmark.shape import Job, bench_shape, recipes
from vtc.benchmark.shape_models import random_models
from vtc.cli import main
from vtc.cli.report import bench_tables, to_json
from vtc.models.random.shapes import TINY
from vtc.recipe import Recipe

QUICK = ("--repeats", "2", "--warmup", "0", "--max-new-tokens", "3", "--text-tokens", "20", "--no-memory")


def vtc(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vtc")


def job(recipe: Recipe, **changes: Any) -> Job:
    """A quick job on the tiny shape, in PyTorch."""
    rounds = Rounds(repeats=1, warmup=0, max_new_tokens=3, memory=False)
    quick = Job(TINY, recipe, rounds, text_tokens=20, backend="torch", precision="fp32")
    return replace(quick, **changes)


@pytest.mark.slow
def test_onnx_runtime_beside_the_prediction(tmp_path: Path) -> None:
    command = ("bench", "--shape", "tiny-siglip", "--recipe", "uniform", *QUICK, "--work", tmp_path / "work", "--json")
    result = vtc(*command)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    original, small = report["runs"]
    assert (original["name"], small["name"]) == ("original", "uniform")
    assert (original["segment_lengths"], small["segment_lengths"]) == ([84.0], [24.0])
    for run, predicted in zip(report["runs"], report["prediction"]["runs"], strict=True):
        assert run["ttft_ms"]["p50"] > run["prefill_ms"]["p50"] > 0
        assert run["vision_ms"]["p50"] > 0
        assert run["kv_bytes"] == predicted["kv_bytes"]
        assert run["flops"] == predicted["flops"]
    prefill = report["prediction"]["speedup"]["prefill"]
    assert prefill["predicted"] > 3
    assert prefill["reached"] == pytest.approx(prefill["measured"] / prefill["predicted"])
    assert 0 < report["selection"]["share_of_original_ttft"] < 1
    assert [parity["samples"] for parity in report["parity"]] == [1, 1]
    assert len(list((tmp_path / "work").iterdir())) == 2

    again = vtc(*command[:-1])
    assert again.exit_code == 0, again.output
    assert "exporting" not in again.stderr
    assert "measured / predicted" in again.stdout


def test_pytorch_with_the_two_stage_recipe() -> None:
    result = vtc("bench", "--shape", "tiny", "--backend", "torch", *QUICK, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [run["name"] for run in report["runs"]] == ["original", "learnpruner"]
    # 5.5 % of 64 tokens, averaged over four layers: 5 before the cut at half depth, 2 after it.
    assert report["runs"][1]["segment_lengths"] == [25.0, 22.0]
    assert report["runs"][1]["precision"] == "bf16"
    for run, predicted in zip(report["runs"], report["prediction"]["runs"], strict=True):
        assert run["kv_bytes"] == predicted["kv_bytes"]
        assert run["ttft_ms"]["p50"] >= run["vision_ms"]["p50"] + run["prefill_ms"]["p50"]
        assert run["new_tokens"] == 3
    assert "eager" in report["protocol"]["backend"]


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("name", ["fourier", "everything"])
def test_any_recipe_and_any_number_of_images(name: str, images: int) -> None:
    report = bench_shape(job(recipe(*RECIPES[name]), shape=replace(TINY, images=images)))
    original, model = report["runs"]
    assert original["visual_tokens"] == 64 * images
    for run, predicted in zip(report["runs"], report["prediction"]["runs"], strict=True):
        assert run["kv_bytes"] == predicted["kv_bytes"]
    assert len(model["segment_lengths"]) == (4 if name == "everything" else 1)
    assert report["selection"]["encoder_ms"] > 0
    assert bench_tables(report)
    assert to_json(report)


def test_one_build_serves_one_image_and_several_eagerly_and_replayed(tmp_path: Path) -> None:
    quick = job(recipe(*RECIPES["everything"]))
    built = random_models(TINY, recipes(quick.recipe), tmp_path, torch.float32, "cpu")
    for images in (1, 3):
        asked = replace(quick, shape=replace(TINY, images=images))
        alone, eager = bench_shape(asked), bench_shape(asked, built=built)
        replayed = bench_shape(replace(asked, cuda_graphs=True), built=built, recording=run_again)
        for report in (eager, replayed):
            for mine, theirs in zip(report["runs"], alone["runs"], strict=True):
                assert mine["segment_lengths"] == theirs["segment_lengths"]
                assert mine["kv_bytes"] == theirs["kv_bytes"]
        assert "eager: " in eager["protocol"]["backend"]
        assert "every step of decoding" in replayed["protocol"]["backend"]


def test_a_learned_selector_needs_no_training_here(tmp_path: Path) -> None:
    learned = recipe({"kind": "prune", "keep": 4, "selector": {"name": "learned", "checkpoint": "pruner.safetensors"}})
    assert bench_shape(job(learned))["runs"][1]["segment_lengths"] == [24.0]


def test_no_selection_costs_nothing() -> None:
    report = bench_shape(job(recipe(*RECIPES["exit"])))
    assert report["selection"]["share_of_original_ttft"] == 0
    assert report["runs"][1]["segment_lengths"] == [84.0, 20.0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "give a BUNDLE or --shape NAME"),
        (["bundle", "--shape", "tiny"], "give a BUNDLE or --shape NAME"),
        (
            ["--shape", "tiny", "--backend", "tensorrt"],
            "--backend tensorrt goes with a BUNDLE: keep those of",
        ),
        (["bundle", "--backend", "torch"], "--backend torch goes with --shape: a bundle is run without PyTorch"),
        (["--shape", "tiny", "--engines", "engines"], "--engines goes with a BUNDLE"),
        (["bundle", "--recipe", "uniform"], "--recipe goes with --shape"),
        (["--shape", "tiny", "--against", "reference"], "--against goes with a BUNDLE"),
        (["--shape", "tiny", "--text-tokens", "2"], "the prompt around a question of one word has"),
        (["--shape", "tiny", "--precision", "bf16"], "--backend onnxruntime runs fp32, fp16, not bf16"),
        (["--shape", "tiny", "--recipe", "visual-exit"], "to calibration, which random weights say nothing about"),
        (["--shape", "tiny-siglip", "--recipe", "fastervlm"], "needs a CLS token"),
        (["--shape", "tiny", "--recipe", "missing"], "missing"),
    ],
)
def test_what_cannot_be_done_is_one_line(args: list[str], words: str) -> None:
    result = vtc("bench", *args)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_gpu_that_is_not_there_is_refused() -> None:
    for backend in ("onnxruntime", "torch"):
        result = vtc("bench", "--shape", "tiny", "--backend", backend, "--device", "cuda")
        if result.exit_code == 0:
            pytest.skip("there is a GPU")
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1

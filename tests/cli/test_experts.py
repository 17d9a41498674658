"""`vtc calibrate`, `place`, `inspect --experts`, and `compress` with fewer experts: what they write and refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from tests.runtime.toy import make_toy, write_toy_bundle
from tests.tiny import image
from vtc.cli import main
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import load_compressed
from vtc.compressed.inspection import digest_of
from vtc.experts.placement import place_contiguous
from vtc.experts.placement_files import load_placement, save_placement
from vtc.experts.statistics import load_statistics
from vtc.models.base import VLMAdapter


def vtc(*args: object) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vtc")


def refused(*args: object, words: str) -> None:
    """A command that tells in a line what is wrong, and writes nothing."""
    result = vtc(*args)
    told = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert result.exit_code == 2, result.output
    assert words in told[-1]
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data of four questions, and recipes."""
    place = tmp_path_factory.mktemp("experts")
    (place / "data").mkdir()
    rows = []
    for number in range(4):
        image(number).save(place / f"data/{number}.png")
        asked = {"question": "what is it ?", "answers": ["a circle"], "category": "shape"}
        rows.append({"id": str(number), "image": f"{number}.png"} | asked)
    (place / "data/data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, stages in {
        "pruned": "[{kind: visual_exit, layer: 2}]",
        "open": "[{kind: visual_exit, layer: auto}]",
        "fewer": "[{kind: visual_exit, layer: 2}, {kind: prune_experts, keep: 6}]\nexperts: {devices: 3}",
        "chosen": f"[{{kind: prune_experts, experts: {[[0, 1, 2, 3]] * 4}}}]",
        "merged": "[{kind: merge_experts, keep: 6}]\nexperts: {devices: 2}",
    }.items():
        (place / f"{name}.yaml").write_text(f"version: 1\nname: {name}\nstages: {stages}\n")
    return place


@pytest.fixture(scope="module")
def statistics(place: Path, mixture_checkpoint: Path) -> Path:
    """Of the mixture with all visual tokens, and with those that a recipe keeps."""
    out = place / "statistics.safetensors"
    asked = "--data", place / "data", "--recipe", place / "pruned.yaml", "-o", out, "--json"
    result = vtc("calibrate", mixture_checkpoint, "--experts", *asked)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["recipe"] == "pruned"
    assert [layer["tokens"]["visual"] for layer in data["uses"]["full"]] == [64] * 4
    assert [layer["tokens"]["visual"] for layer in data["uses"]["pruned"]] == [64, 64, 0, 0]
    return out


def test_skipping_is_measured_and_nothing_else(place: Path, mixture_checkpoint: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "skipping.json", ("--data", place / "data")
    result = vtc("calibrate", mixture_checkpoint, "--skip", 0.3, *asked, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads(out.read_text())
    assert found["kind"] == "skipping"
    assert found["thresholds"]["skipped"] >= 0.3
    told = vtc("calibrate", mixture_checkpoint, "--skip", 0.3, *asked, "-o", out)
    assert "nothing that vtc exports skips experts" in told.output
    words = "cannot skip a share of 1 of the expert calls; give one between 0 and 1"
    refused("calibrate", mixture_checkpoint, "--skip", 1, *asked, "-o", out, words=words)
    for flags in ([], ["--experts", "--skip", "0.3"]):
        refused("calibrate", mixture_checkpoint, *flags, "-o", out, words="give --experts or --skip SHARE, one of the")
    recipe = "--skip", 0.3, "--recipe", place / "pruned.yaml"
    refused("calibrate", mixture_checkpoint, *recipe, "-o", out, words="--skip measures a model as it is; compress it")


@pytest.fixture(scope="module")
def fewer(place: Path, mixture_checkpoint: Path) -> Path:
    """The mixture with 6 of its experts, and where they are to live."""
    out = place / "fewer"
    asked = "--recipe", place / "fewer.yaml", "--data", place / "data", "-o", out
    result = vtc("compress", mixture_checkpoint, *asked)
    assert result.exit_code == 0, result.output
    return out


def test_who_uses_which_expert_is_shown(statistics: Path, mixture_checkpoint: Path, tmp_path: Path) -> None:
    found = load_statistics(statistics)
    assert found.model == digest_of(mixture_checkpoint)
    assert found.prompts == 4
    assert set(found.uses) == {"full", "pruned"}
    figure = tmp_path / "experts.png"
    result = vtc("inspect", mixture_checkpoint, "--experts", statistics, "--figure", figure)
    assert result.exit_code == 0, result.output
    assert "all visual tokens: 64 visual and" in result.stdout
    assert "the visual tokens that pruned keeps: 64 visual and" in result.stdout
    shares = found.use().chosen[0, 1] / found.use().chosen[0].sum(axis=0)
    assert np.isfinite(shares).all()
    assert min(Image.open(figure).size) > 100
    data = json.loads(vtc("inspect", mixture_checkpoint, "--experts", statistics, "--json").stdout)
    assert data["kind"] == "experts"
    assert len(data["uses"]["full"]) == 4


@pytest.mark.parametrize("written", ["vtc", "sglang", "tensorrt-llm", "vllm"])
def test_a_map_is_written(statistics: Path, mixture_checkpoint: Path, tmp_path: Path, written: str) -> None:
    asked = "--experts", statistics, "--devices", 4, "--homes", "modality", "--format", written, "--json"
    result = vtc("place", mixture_checkpoint, *asked, "-o", tmp_path / "map")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [sorted(row) for row in data["physical_to_logical_map"]] == [list(range(8))] * 4
    assert len(data["compared"]) == 12
    if written == "vtc":
        found = load_placement(tmp_path / "map")
        assert found.expert_of_slot.tolist() == data["physical_to_logical_map"]
        own = vtc("place", mixture_checkpoint, *asked, "--map", tmp_path / "map")
        assert json.loads(own.stdout)["compared"][-1]["placement"] == "map"
    if written == "vllm":
        assert json.loads((tmp_path / "map").read_text()) == data["physical_to_logical_map"]


def test_a_compressed_model_says_where_its_experts_live(fewer: Path, mixture: VLMAdapter, place: Path) -> None:
    model, recipe, _ = load_compressed(fewer)
    manifest = json.loads((fewer / "manifest.json").read_text())
    assert recipe.autos == []
    assert model.adapter.facts.decoder.experts == 6
    found = load_placement(fewer / "placement.json")
    assert manifest["placement"]["physical_to_logical_map"] == found.expert_of_slot.tolist()
    assert (found.experts, found.devices, found.model) == (6, 3, digest_of(fewer))
    asked = apply_recipe(mixture, recipe).inputs([[image(7)]], [mixture.chat("what is it ?")])
    with torch.inference_mode():
        assert torch.equal(model.prefill(*asked)[0], apply_recipe(mixture, recipe).prefill(*asked)[0])
    shown = json.loads(vtc("inspect", fewer, "--json").stdout)
    assert shown["plan"]["stages"][1]["experts"] == 6


def test_a_compressed_mixture_is_measured(fewer: Path, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    assert vtc("calibrate", fewer, "--experts", "--data", place / "data", "-o", out).exit_code == 0
    found = load_statistics(out)
    assert found.use("pruned").experts == found.use().experts == 6
    result = vtc("place", fewer, "--experts", out, "--devices", 2, "--tokens", "pruned")
    assert result.exit_code == 0, result.output
    refused("calibrate", fewer, "--experts", "--recipe", "none", "-o", out, words="was made with a recipe")


def test_merged_experts_are_placed(place: Path, mixture_checkpoint: Path, tmp_path: Path) -> None:
    asked = "--recipe", place / "merged.yaml", "--data", place / "data", "-o", tmp_path / "merged"
    result = vtc("compress", mixture_checkpoint, *asked)
    assert result.exit_code == 0, result.output
    assert load_placement(tmp_path / "merged/placement.json").experts == 6


# What is refused ------------------------------------------------------------------------------------------------------

CALIBRATE: dict[str, tuple[tuple[str, ...], str]] = {
    "a dense model": (("{dense}", "--data", "{data}"), "is dense, it has no experts"),
    "no data": (("{mixture}",), "--data DIR with data.jsonl"),
    "a recipe that leaves something open": (
        ("{mixture}", "--data", "{data}", "--recipe", "{place}/open.yaml"),
        "leaves stages.0.layer open; compress the model with it",
    ),
    "a recipe that leaves fewer experts": (
        ("{mixture}", "--data", "{data}", "--recipe", "{place}/chosen.yaml"),
        "has; compress the model with it",
    ),
    "a recipe that does not fit": (
        ("{mixture}", "--data", "{data}", "--recipe", "{place}/pruned.yaml", "--set", "stages.0.layer=9"),
        "stages.0.layer",
    ),
    "no such model": (("{place}/none",), "none"),
    "no checkpoint": (("{place}",), "config.json"),
}


def filled(text: str, **places: object) -> str:
    """A text with places in it."""
    return text.format(**places)


@pytest.mark.parametrize("case", CALIBRATE)
def test_calibrate_refuses(place: Path, checkpoint: Path, mixture_checkpoint: Path, tmp_path: Path, case: str) -> None:
    args, words = CALIBRATE[case]
    places = {"place": place, "data": place / "data", "dense": checkpoint, "mixture": mixture_checkpoint}
    out = tmp_path / "out.safetensors"
    refused("calibrate", *(filled(arg, **places) for arg in args), "--experts", "-o", out, words=words)
    assert list(tmp_path.iterdir()) == []


def test_outputs_in_an_artifact_are_refused(
    fewer: Path, place: Path, statistics: Path, mixture_checkpoint: Path
) -> None:
    before = sorted(fewer.iterdir())
    for args in (
        ("calibrate", mixture_checkpoint, "--experts", "--data", place / "data", "-o", fewer / "s.safetensors"),
        ("place", mixture_checkpoint, "--experts", statistics, "--devices", 2, "-o", fewer / "map.json"),
        ("inspect", mixture_checkpoint, "--experts", statistics, "--figure", fewer / "x.png"),
    ):
        refused(*args, words=f"lies in {fewer}")
    assert sorted(fewer.iterdir()) == before
    before_bytes = statistics.read_bytes()
    for args in (
        ("place", mixture_checkpoint, "--experts", statistics, "--devices", 2, "-o", statistics),
        ("inspect", mixture_checkpoint, "--experts", statistics, "--figure", statistics),
    ):
        refused(*args, words="is what the command reads")
    assert statistics.read_bytes() == before_bytes


def test_statistics_must_be_there_whole_and_of_the_model(
    statistics: Path, checkpoint: Path, mixture_checkpoint: Path, tmp_path: Path
) -> None:
    damaged, other = tmp_path / "damaged", tmp_path / "other.safetensors"
    damaged.write_bytes(statistics.read_bytes()[:-100])
    shutil.copyfile(checkpoint / "model.safetensors", other)
    out = tmp_path / "out"
    for verb, *rest in (("place", "--devices", 2, "-o", out), ("inspect", "--figure", out)):
        refused(verb, mixture_checkpoint, "--experts", tmp_path / "none", *rest, words="no such file; vtc calibrate")
        refused(verb, mixture_checkpoint, "--experts", damaged, *rest, words="not a file of expert statistics")
        refused(verb, mixture_checkpoint, "--experts", other, *rest, words="not a file of expert statistics")
        refused(verb, mixture_checkpoint, "--experts", tmp_path, *rest, words="no such file; vtc calibrate")
        refused(verb, checkpoint, "--experts", statistics, *rest, words="expert statistics of model")
    assert not out.exists()


PLACE: dict[str, tuple[tuple[object, ...], str]] = {
    "devices that do not divide": (("--devices", 3), "3 devices do not divide 8 experts"),
    "copies that do not fit": (
        ("--devices", 4, "--placement", "eplb", "--copies", 2),
        "4 devices do not divide 8 experts and 2 copies",
    ),
    "copies with another method": (("--devices", 4, "--copies", 4), "copies of experts are for placement: eplb"),
    "homes on one device": (("--devices", 1, "--homes", "modality"), "homes: modality needs at least 2 devices"),
    "no such method": (("--devices", 2, "--placement", "near"), "near"),
    "a map that is not there": (("--devices", 2, "--map", "none.json"), "none.json: no such file"),
    "a map of another model": (("--devices", 2, "--map", "{model}"), "a placement for model cccccccccccc"),
    "a map of another size": (("--devices", 2, "--map", "{size}"), "a placement of 4 layers of 4 experts"),
    "a map for other devices": (("--devices", 2, "--map", "{devices}"), "a placement for 4 devices; give --devices 4"),
    "no map": (("--devices", 2, "--map", "{statistics}"), "not a placement of experts"),
}


@pytest.mark.parametrize("case", PLACE)
def test_place_refuses(statistics: Path, mixture_checkpoint: Path, tmp_path: Path, case: str) -> None:
    asked, words = PLACE[case]
    whole = place_contiguous(4, 8, 4)
    maps: dict[str, Any] = {
        "model": type(whole)(whole.expert_of_slot, 8, 2, model="c" * 64),
        "size": place_contiguous(4, 4, 2),
        "devices": whole,
    }
    for name, one in maps.items():
        save_placement(tmp_path / name, one)
    places = {name: tmp_path / name for name in maps} | {"statistics": statistics}
    args = [filled(str(arg), **places) for arg in asked]
    refused("place", mixture_checkpoint, "--experts", statistics, *args, "-o", tmp_path / "out", words=words)
    assert not (tmp_path / "out").exists()


def test_statistics_without_what_is_asked_for(place: Path, mixture_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.safetensors"
    measured = vtc("calibrate", mixture_checkpoint, "--experts", "--data", place / "data", "--samples", 1, "-o", out)
    assert measured.exit_code == 0, measured.output
    asked = "place", mixture_checkpoint, "--experts", out, "--devices", 2, "-o", tmp_path / "map"
    refused(*asked, "--tokens", "pruned", words="have no 'pruned' tokens; they have full")
    refused(*asked, words="expert statistics of one prompt cannot be split into two halves")
    assert not (tmp_path / "map").exists()


def test_figures_go_with_experts(mixture_checkpoint: Path, tmp_path: Path) -> None:
    refused("inspect", mixture_checkpoint, "--figure", tmp_path / "x.png", words="--figure goes with --experts")
    assert list(tmp_path.iterdir()) == []
    asked = "inspect", mixture_checkpoint, "--experts", tmp_path / "s", "--recipe", "none"
    refused(*asked, words="leave --recipe and --set out")


def test_bundles_are_not_measured(mixture_checkpoint: Path, tmp_path: Path) -> None:
    write_toy_bundle(make_toy(), tmp_path / "bundle")
    out = tmp_path / "out"
    refused("calibrate", tmp_path / "bundle", "--experts", "-o", out, words="is a 'bundle', not a compressed model")


COMPRESS = {
    "{kind: prune_experts, keep: 6}": "llava is dense here, it has no experts; leave the stage out",
    "{kind: merge_experts, keep: 6}": "llava is dense here, it has no experts; leave the stage out",
}


@pytest.mark.parametrize("stage", COMPRESS)
def test_dense_models_are_refused(checkpoint: Path, place: Path, tmp_path: Path, stage: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"version: 1\nname: r\nstages: [{stage}]\n")
    asked = "--recipe", recipe, "--data", place / "data", "-o", tmp_path / "out"
    refused("compress", checkpoint, *asked, words=COMPRESS[stage])
    recipe.write_text("version: 1\nname: r\nstages: []\nexperts: {devices: 2}\n")
    refused("compress", checkpoint, *asked, words="it has no experts to place; leave it out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml"]


def test_damaged_manifests_are_told(statistics: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for text in ("{}", "[]", '{"kind": "compressed", "model": 3}', "no json"):
        (tmp_path / "out/manifest.json").write_text(text)
        for verb in (("place", "--devices", 2), ("inspect",)):
            result = vtc(verb[0], tmp_path / "out", "--experts", statistics, *verb[1:])
            assert result.exit_code in (1, 2), result.output
            assert "manifest.json" in result.stderr.splitlines()[-1], result.stderr
            assert "Traceback" not in result.stderr

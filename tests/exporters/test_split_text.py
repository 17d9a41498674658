"""Vision graphs that are split where they read the question: one run an image, one a question, and the same answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from exporters.lint import lint_bundle
from exporters.onnx import ExportRequest, export
from exporters.targets import target
from exporters.tensorrt.profiles import profiles
from exporters.vision_graphs import ReadingGraph, SeeingGraph
from tests.bundle.test_foreign_graphs import resealed, swap
from tests.exporters.export_request import ORIGIN
from tests.exporters.tensorrt.building import builder, room
from tests.marks import needs_rtx
from tests.models.families import Case, Checkpoints, prompts_of
from tests.runtime.nvidia import nvidia, write_engine_set
from tests.tiny import RECIPES, image
from vtc.bundle.engines import Limits
from vtc.bundle.manifest import load_manifest
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import served
from vtc.data.samples import Sample
from vtc.errors import BundleError
from vtc.facts.layout import ImageOptions
from vtc.models.base import VLMAdapter
from vtc.recipe import Recipe
from vtc.runtime.budgets import Entropy
from vtc.runtime.vlm import VLM

pytestmark = pytest.mark.xdist_group("split text")

Stages = list[dict[str, Any]]
STAGES: dict[str, Stages] = {
    "budgets": [{"kind": "prune", "keep": [4, 5], "selector": "mmtok", "positions": "original"}],
    "whole": RECIPES["text_aware"],
    "qmop": [{"kind": "project", "keep": 4, "projector": "qmop"}],
}
PRECISION = {"qmop": "fp16"}
QUESTIONS = ("what digit is red ?", "is there a circle ?")


class Made(NamedTuple):
    request: ExportRequest
    path: Path


Bundles = Callable[[str], Made]


def resolved(stages: Stages, *, split: bool = True) -> Recipe:
    return Recipe.model_validate({"version": 1, "name": "test", "split_text": split, "stages": stages})


@pytest.fixture(scope="module")
def bundles(adapter: VLMAdapter, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Bundles by recipe and precision, whole or split, each exported once."""
    work = tmp_path_factory.mktemp("split")

    @cache
    def bundle(name: str) -> Made:
        torch.manual_seed(0)
        recipe, precision = resolved(STAGES[name], split=name != "whole"), PRECISION.get(name, "fp32")
        models = served(apply_recipe(adapter, recipe, from_state=True), recipe)
        samples = [Sample([image(seed)], adapter.chat("what is it ?")) for seed in range(len(models))]
        wanted = ExportRequest(models, recipe, ORIGIN, samples, precisions=[precision])
        assert export(wanted, work / name)[precision].greedy_match == 1.0
        return Made(wanted, work / name)

    return bundle


def asked_of(adapter: VLMAdapter) -> Any:
    """Two prompts, one of them about two images."""
    return [[image(0)], [image(1), image(2)]], [adapter.chat(QUESTIONS[0]), adapter.chat(QUESTIONS[1], 2)]


def ran(model: VLM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of vision graphs, as often as they are run."""
    runs: list[str] = []
    for served_image in model.every_image:
        model.vision.open(served_image)
    for name, graph in model.vision._graphs.items():

        def counting(feeds: Any, host: Any = (), *, name: str = name, run: Any = graph.run) -> Any:
            runs.append(name)
            return run(feeds, host)

        monkeypatch.setattr(graph, "run", counting)
    return runs


def test_split_graphs_keep_and_say_what_the_model_and_the_whole_graph_do(bundles: Bundles, adapter: VLMAdapter) -> None:
    request, path = bundles("budgets")
    split, whole, asked, continuations = (
        VLM.load(path),
        VLM.load(bundles("whole").path),
        asked_of(adapter),
        [[5, 6], [8]],
    )
    np.testing.assert_array_equal(split.kept(*asked)[0], request.model.kept(*asked)[0])
    np.testing.assert_array_equal(split.kept(*asked)[0], whole.kept(*asked)[0])
    eager, unsplit = (model.score(*asked, continuations) for model in (request.model, whole))
    for scores, ours, theirs in zip(split.score(*asked, continuations), eager, unsplit, strict=True):
        np.testing.assert_allclose(scores, ours, atol=1e-4)
        np.testing.assert_allclose(scores, theirs, atol=1e-4)
    assert lint_bundle(split.manifest, "fp32", target("rtx")) == []


def test_a_projector_that_reads_the_question_is_split_before_its_router(bundles: Bundles, adapter: VLMAdapter) -> None:
    request, path = bundles("qmop")
    split, asked = VLM.load(path), asked_of(adapter)
    answers, eager = split.generate(*asked, 4), request.model.generate(*asked, 4)
    assert [one.token_ids for one in answers] == [one.token_ids for one in eager]
    encoder, reader = split.vision._graphs.values()
    assert encoder.outputs == ["seen_features", "seen_image"]
    assert list(reader.inputs) == ["seen_features", "seen_image", "text_embeds", "text_mask"]


def test_manifest_says_how_often_each_graph_is_run(bundles: Bundles) -> None:
    split, whole = (load_manifest(bundles(name).path) for name in ("budgets", "whole"))
    assert [one.graphs for one in split.images] == [(one.per_image, one.per_question) for one in split.images]
    assert [one.graphs for one in split.images] == [
        ("vision_encoder", "text_reader"),
        ("vision_encoder", "text_reader_1"),
    ]
    assert [(one.per_image, one.per_question) for one in whole.images] == [("", "vision_encoder")]
    assert [stage["splits"] for stage in split.plan["stages"]] == [True]


@pytest.mark.parametrize("name", ["budgets", "qmop"])
def test_second_question_about_an_image_skips_the_encoder(
    bundles: Bundles, adapter: VLMAdapter, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = bundles(name).path
    plain, keeping = VLM.load(path), VLM.load(path, image_cache=2**20)
    runs = ran(keeping, monkeypatch)
    for question in QUESTIONS:
        asked = [[image(0)]], [adapter.chat(question)], [[5, 6, 7]]
        np.testing.assert_array_equal(keeping.score(*asked)[0], plain.score(*asked)[0])
    assert runs[:3] == ["vision_encoder", "text_reader", "text_reader"]
    again = keeping.generate([[image(0)]], [adapter.chat("why ?")], 1)[0].timings
    assert again.vision_ms == keeping.vision._graphs["text_reader"].run_ms > 0
    keeping.generate([[image(1)]], [adapter.chat("why ?")], 1)
    assert runs[3:] == ["text_reader", "vision_encoder", "text_reader"]


def test_every_budget_goes_on_from_the_same_encoder(
    bundles: Bundles, adapter: VLMAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, path = bundles("budgets")
    model, asked = VLM.load(path, image_cache=2**20), ([[image(3)]], [adapter.chat(QUESTIONS[0])])
    runs = ran(model, monkeypatch)
    for keep, eager in zip((5, 4), request.models, strict=True):
        answers = model.generate(*asked, 4, keep=keep)
        assert [one.token_ids for one in answers] == [one.token_ids for one in eager.generate(*asked, 4)]
    model.generate([[image(4)]], asked[1], 1, keep=Entropy(0.0))
    assert runs == ["vision_encoder", "text_reader", "text_reader_1", "vision_encoder", "text_reader_1", "text_reader"]


FAMILIES: dict[str, tuple[Case, Stages]] = {
    "a projector for each view": (
        Case("internvl", "tiles", ImageOptions(tiles=(2, 2))),
        [{"kind": "project", "keep": 0.25, "projector": "qmop"}],
    ),
    "DeepStack": (Case("qwen3_vl"), [{"kind": "prune", "keep": 0.5, "selector": "mmtok"}]),
    "bars, and a cut that knows them": (
        Case("llava_next", "padded", ImageOptions(image_size=(150, 60))),
        [
            {"kind": "prune", "keep": 0.5, "selector": "cdpruner"},
            {"kind": "prune_in_decoder", "layer": 2, "keep": 0.5, "selector": "fastv"},
        ],
    ),
    "several spans": (Case("idefics3"), [{"kind": "prune", "keep": 0.5, "selector": "mmtok"}]),
    "readings, and a selector after it": (
        Case("llava_next"),
        [
            {"kind": "prune", "keep": 0.5, "selector": "mmtok"},
            {"kind": "prune", "keep": 0.5, "selector": "cls_attention"},
        ],
    ),
    "pruned before": (
        Case("llava_next"),
        [
            {"kind": "prune", "keep": 0.5, "selector": "uniform"},
            {"kind": "prune", "keep": 0.5, "selector": "cdpruner"},
        ],
    ),
    "a projector that is not split": (
        Case("internvl", "whole", ImageOptions(tiles=(1, 1))),
        [{"kind": "project", "keep": 0.25, "projector": "quecc"}],
    ),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("families"), encoder_layers=2, decoder_layers=4)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_both_parts_in_turn_give_what_the_whole_does(checkpoints: Checkpoints, name: str) -> None:
    case, stages = FAMILIES[name]
    model = apply_recipe(checkpoints.adapter(case), resolved(stages), from_state=True)
    given: list[Any] = []
    model.vision.register_forward_hook(lambda _, given_in, given_out: given.extend((*given_in, given_out)))
    model.prefill(*model.inputs(*prompts_of(model.adapter, "batch")))
    pixels, text, wanted = given
    seen = SeeingGraph(model, torch.float32)(pixels)
    assert {len(tensor) for tensor in seen} == {len(text.states)}
    example = model.vision.before_question(torch.zeros_like(pixels))
    found = ReadingGraph(model, example)(list(seen), text.states, text.mask)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.full
@pytest.mark.parametrize("name", FAMILIES)
def test_split_bundles_of_families_answer_as_the_model(checkpoints: Checkpoints, tmp_path: Path, name: str) -> None:
    case, stages = FAMILIES[name]
    recipe = resolved(stages)
    model = apply_recipe(checkpoints.adapter(case), recipe, from_state=True)
    asked = prompts_of(model.adapter, "batch")
    samples = [Sample(images, prompt) for images, prompt in zip(*asked, strict=True)]
    parity = export(ExportRequest([model], recipe, ORIGIN, samples), tmp_path / "bundle")["fp32"]
    assert parity.greedy_match == 1.0
    bundle = VLM.load(tmp_path / "bundle", threads=1)
    for ours, theirs in zip(bundle.kept(*asked), model.kept(*asked), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [one.token_ids for one in bundle.generate(*asked, 8)] == [one.token_ids for one in model.generate(*asked, 8)]


@needs_rtx
def test_tensorrt_builds_what_reads_the_question(bundles: Bundles, tmp_path: Path) -> None:
    manifest = load_manifest(bundles("budgets").path)

    def shapes(inputs: Any) -> Any:
        return profiles(manifest, "text_reader", inputs, Limits(batch=2, text=100))

    built = builder().build(manifest.graph("text_reader", "fp32"), tmp_path / "reader.engine", shapes, room)
    assert [one.name for one in built] == ["run"]
    assert built[0].shapes["text_embeds"][2] == (2, 100, 48)
    assert built[0].shapes["seen_features"][2] == (2, 16, 32)


def test_tensorrt_hands_what_was_seen_to_what_reads_the_question(
    bundles: Bundles, adapter: VLMAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, path = bundles("budgets")
    copied = shutil.copytree(path, tmp_path / "bundle")
    nvidia(monkeypatch)
    write_engine_set(copied, Limits(batch=2, images=2, text=100, new_tokens=4))
    asked = asked_of(adapter)
    answers = VLM.load(copied, backend="tensorrt").generate(*asked, 4)
    assert [one.token_ids for one in answers] == [one.token_ids for one in request.model.generate(*asked, 4)]


@pytest.mark.parametrize("change", ["swapped", "as if it were whole", "of another export"])
def test_graphs_that_do_not_go_together_are_refused(
    bundles: Bundles, adapter: VLMAdapter, tmp_path: Path, change: str
) -> None:
    copied = shutil.copytree(bundles("budgets").path, tmp_path / "bundle")
    images = json.loads((copied / "manifest.json").read_text())["images"]
    if change == "swapped":
        resealed(copied, swap("vision_encoder", "text_reader"))
    elif change == "as if it were whole":
        resealed(copied, lambda _: None, images=[{**one, "per_question": ""} for one in images])
    else:
        other = bundles("qmop").path / "onnx/text_reader_fp16.onnx"
        resealed(copied, lambda work: shutil.copyfile(other, work / "onnx/text_reader_1.onnx"))
    reason = "'text_reader_1' takes seen_image, which 'vision_encoder' does not give: they are of two exports"
    with pytest.raises(BundleError, match=reason if change == "of another export" else "not the one that the manifest"):
        VLM.load(copied).generate([[image(0)]], [adapter.chat("why ?")], 1, keep=4)

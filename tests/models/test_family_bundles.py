"""Every family's bundles: parity with PyTorch, without torch, in half precision, and for several layouts at once.

The checkpoints are shallower than those of the other tests, as the time of an export goes by layers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from transformers import GenerationConfig

from exporters.describe import described
from exporters.onnx import ExportRequest, export
from exporters.parity import Parity
from tests.models.families import CASES, Case, Checkpoints, compressed, every_case, every_family, prompts_of
from tests.runtime.nvidia import nvidia, write_engine_set
from tests.runtime.room import give_room
from tests.tiny import image
from vtc.bundle.engines import Limits
from vtc.bundle.facts import GenerationFacts
from vtc.compressed.checkpoint import Origin
from vtc.compressed.model import CompressedModel
from vtc.compressed.padding import padding_of
from vtc.data.datasets import Dataset, load_dataset
from vtc.data.samples import samples_from
from vtc.errors import BundleError, InputError
from vtc.evaluate.answers import Contestant, ask_all
from vtc.evaluate.asking import Asking, Effort, Faults
from vtc.evaluate.layouts import by_layout
from vtc.facts.layout import ImageOptions
from vtc.inputs.layouts import offer_of
from vtc.recipe import Recipe
from vtc.runtime.decoder import PADDING
from vtc.runtime.onnxruntime.backend import OnnxRuntime
from vtc.runtime.onnxruntime.graph import Graph
from vtc.runtime.openvino.device import choose_device
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.vision import Vision
from vtc.runtime.vlm import VLM

EVERYTHING = [
    {"kind": "prune", "keep": 0.7, "selector": "uniform", "positions": "original"},
    {"kind": "prune_in_decoder", "layer": 2, "keep": 0.5, "selector": "fastv"},
]
ALWAYS = (
    "gemma3",
    "idefics3",
    "internvl",
    "llava_next",
    "llava_onevision",
    "paligemma",
    "qwen2_5_vl",
    "qwen3_vl_moe",
)
"""Families of which the others are variants; the others' bundles are left to `make test-full`."""
Bundles = Callable[[Case], tuple[CompressedModel, Path]]


def first_case(family: str) -> Case:
    """A family's default layout."""
    return next(case for case in CASES if case.family == family)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("families"), encoder_layers=2, decoder_layers=4)


@pytest.fixture(scope="module")
def bundles(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """The model of a case with all kinds of token reduction, and its bundle, whose parity was checked."""
    directory = tmp_path_factory.mktemp("bundles")

    @cache
    def bundle_of(case: Case) -> tuple[CompressedModel, Path]:
        adapter = checkpoints.adapter(case)
        model = compressed(adapter, *EVERYTHING)
        path = directory / str(case)
        parity = exported([model], EVERYTHING, path)
        assert parity.greedy_match == parity.indices_equal == 1.0
        return model, path

    return bundle_of


def exported(
    models: Sequence[CompressedModel], stages: list[dict[str, Any]], path: Path, precision: str = "fp32"
) -> Parity:
    """Export a model made ready for some layouts, and how far the bundle is from it."""
    recipe = Recipe.model_validate({"version": 1, "name": "test", "stages": stages})
    origin = Origin(str(models[0].adapter.path), "0" * 64)
    samples = [sample for model in models for sample in samples_from(model.adapter, None, 2, seed=0)]
    return export(ExportRequest(models, recipe, origin, samples, (precision,)), path)[precision]


@every_case("batch", always=ALWAYS)
def test_bundle_answers_as_the_model(bundles: Bundles, case: Case, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = bundles(case)
    bundle = VLM.load(path, provider="cpu", threads=1)
    images, prompts = prompts_of(model.adapter, kind)
    ours = [answer.token_ids for answer in model.generate(images, prompts, 12)]
    assert [list(answer.token_ids) for answer in bundle.generate(images, prompts, 12)] == ours
    assert bundle.chat("what is red ?", case.frames) == model.adapter.chat("what is red ?")
    served, adapter = bundle.manifest.images[0], model.adapter
    marked = f"what is {adapter.placeholder} or {adapter.image_token} ?"
    assert bundle.chat(marked, case.frames) == adapter.chat(marked)
    (row,) = bundle.text.encode([bundle.chat(marked, case.frames)], [1], served)
    ids, _ = adapter.tokenize([adapter.chat(marked)], [1], model.keep_per_span)
    assert row == ids[0].tolist()
    assert row.count(served.token_id) == served.spans * served.keep_per_span
    settings: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=[ours[0][min(3, len(ours[0]) - 1)], ours[1][min(5, len(ours[1]) - 1)]],
        pad_token_id=model.adapter.pad_token_id,
        repetition_penalty=1.3,
    )
    monkeypatch.setattr(model.adapter.model, "generation_config", settings)
    facts = TypeAdapter(GenerationFacts).validate_python(described([model], [None])["generation"])
    monkeypatch.setattr(bundle.text, "facts", facts)
    ruled = [answer.token_ids for answer in model.generate(images, prompts, 12)]
    assert [list(answer.token_ids) for answer in bundle.generate(images, prompts, 12)] == ruled != ours


@every_case("batch", always=ALWAYS)
def test_a_cache_with_room_gives_the_same_logits(
    bundles: Bundles, case: Case, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = bundles(case)
    bundle = VLM.load(path, provider="cpu", threads=1)
    asked = prompts_of(model.adapter, kind)
    continuations = [list(range(5, 5 + 9)) for _ in asked[1]]
    growing = bundle.score(*asked, continuations)
    give_room(monkeypatch, step=5)
    for scores, wanted in zip(bundle.score(*asked, continuations), growing, strict=True):
        np.testing.assert_allclose(scores, wanted, atol=1e-4)


def test_few_tokens_are_computed_by_their_own_experts(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = bundles(first_case("qwen3_vl_moe"))
    bundle = VLM.load(path, provider="cpu", threads=1)
    steps = [segment.step for segment in bundle.manifest.segments]
    assert [(step.graph, step.rows) for step in steps if step] == [("decoder_step_0", 1), ("decoder_step_1", 1)]
    names: list[str] = []
    run = Graph.run
    monkeypatch.setattr(
        Graph, "run", lambda graph, *fed, **how: names.append(graph._path.stem) or run(graph, *fed, **how)
    )
    images, prompts = prompts_of(model.adapter, "batch")
    both = [answer.token_ids for answer in bundle.generate(images, prompts, 4)]
    assert not [name for name in names if "step" in name]
    names.clear()
    assert bundle.generate(images[:1], prompts[:1], 4)[0].token_ids == both[0]
    assert [name for name in names if "decoder" in name] == [
        *("decoder_segment_0", "decoder_segment_1"),
        *(len(both[0]) - 1) * ["decoder_step_0", "decoder_step_1"],
    ]
    # An earlier bundle says nothing of such graphs.
    segments = tuple(replace(segment, step=None) for segment in bundle.manifest.segments)
    earlier = replace(bundle.manifest, segments=segments)
    answers = VLM(earlier, OnnxRuntime(earlier, RuntimeOptions(provider="cpu", threads=1))).generate(images, prompts, 4)
    assert [answer.token_ids for answer in answers] == both


@every_family("gemma3", "qwen2_5_vl", "qwen3_vl_moe")
def test_engines_answer_as_onnx_runtime_does(
    bundles: Bundles, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = bundles(first_case(family))
    bundle = shutil.copytree(path, tmp_path / "bundle")
    nvidia(monkeypatch)
    write_engine_set(bundle, Limits(batch=2, images=1, text=128, new_tokens=12))
    asked = prompts_of(model.adapter, "batch")
    wanted = VLM.load(bundle, provider="cpu", threads=1).generate(*asked, 12)
    answers = VLM.load(bundle, backend="tensorrt").generate(*asked, 12)
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in wanted]


@every_case("batch", always=ALWAYS)
def test_openvino_answers_as_onnx_runtime_does(bundles: Bundles, case: Case, kind: str) -> None:
    model, path = bundles(case)
    asked = prompts_of(model.adapter, kind)
    continuations = [list(range(5, 5 + 9)) for _ in asked[1]]
    wanted = VLM.load(path, provider="cpu", threads=1)
    bundle = VLM.load(path, backend="openvino", threads=1)
    in_place = {segment.graph.fused == segment.graph.layers for segment in bundle.decoder.segments}  # type: ignore[attr-defined]
    assert in_place == {case.family != "paligemma"}  # whose scores have a soft cap, which OpenVINO's attention has not
    for scores, others in zip(bundle.score(*asked, continuations), wanted.score(*asked, continuations), strict=True):
        np.testing.assert_allclose(scores, others, atol=1e-3)
    answers = [answer.token_ids for answer in bundle.generate(*asked, 12)]
    assert answers == [answer.token_ids for answer in wanted.generate(*asked, 12)]


@every_case("batch", always=ALWAYS)
def test_openvino_rounds_no_whole_numbers(bundles: Bundles, case: Case, kind: str) -> None:
    model, path = bundles(case)
    asked = prompts_of(model.adapter, kind)
    if not choose_device().computes("bf16"):
        pytest.skip("this processor does not compute in bf16")
    bundle = VLM.load(path, backend="openvino", precision="bf16", threads=1)
    assert bundle.precision == "bf16"
    assert all(np.isfinite(scores).all() for scores in bundle.score(*asked, [[5, 6]] * len(asked[1])))
    decoder = bundle.decoder
    graphs = [
        bundle.vision.open(bundle.manifest.images[0]),
        *(one.graph for one in decoder.segments),
        *decoder.selectors,
    ]
    kinds = [numbers_of(graph) for graph in graphs]
    assert all("bf16" in {output for _, output in kind} for kind in kinds[:-1])
    # bfloat16 has no whole numbers above 256, and positions and places in an image go beyond.
    assert not any(kind & {("i32", "bf16"), ("i64", "bf16")} for kind in kinds)


def numbers_of(graph: Any) -> set[tuple[str, str]]:
    """What each operator of a graph in OpenVINO takes first, and what it gives."""
    nodes = graph._compiled.get_runtime_model().get_ordered_ops()
    given = {node: node.get_rt_info()["outputPrecisions"].astype(str).split(",")[0] for node in nodes}
    taking = [
        node for node in nodes if node.get_input_size() and node.get_rt_info()["layerType"].astype(str) == "Convert"
    ]
    sums = {("", found) for found in given.values()}
    return sums | {(given[node.input_value(0).get_node()], given[node]) for node in taking}


@every_family("gemma3", "llava_next", "qwen2_5_vl")
def test_bars_take_no_place_after_a_cut_inside_the_decoder(
    bundles: Bundles, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = bundles(first_case(family))
    adapter, bundle = model.adapter, VLM.load(path, provider="cpu", threads=1)
    if not adapter.pixels.pads:
        assert PADDING not in bundle.vision.open(bundle.manifest.images[0]).outputs
        bundle.ask(image(0), "what is red ?", 1)
        assert [PADDING in graph.inputs for graph in bundle.decoder.selectors] == [False]
        return
    height, width = adapter.facts.image_size
    shapes = [[(width, height // 4)], [], [(width // 3, height), (width, height)]]
    images = [[image(7, shape) for shape in group] for group in shapes]
    asked = images, [adapter.chat("what is red ?", len(group)) for group in images]
    kept = model.kept(*asked)
    padding = padding_of(adapter, adapter.preprocess([one for group in images for one in group]))
    assert padding is not None
    for bars, entering, staying in zip(padding, *kept, strict=True):
        where = np.asarray(adapter.facts.layout.places)[bars.numpy()]
        entered = np.isin(entering, where)
        assert np.isin(staying, where).sum() == max(0, len(staying) - (~entered).sum())
    assert padding[0].any()
    nvidia(monkeypatch)
    write_engine_set(shutil.copytree(path, tmp_path / "bundle"), Limits(batch=3, images=2, text=128, new_tokens=12))
    for one in (bundle, VLM.load(tmp_path / "bundle", backend="tensorrt")):
        assert [places.tolist() for places in one.kept(*asked)] == [places.tolist() for places in kept]
    see = Vision.see
    monkeypatch.setattr(Vision, "see", lambda *arguments: see(*arguments)._replace(padding=None))
    with pytest.raises(BundleError, match="takes padding, and the vision graph does not give it"):
        bundle.kept(*asked)


@every_family(*ALWAYS)
def test_bundles_run_without_torch(bundles: Bundles, checkpoints: Checkpoints, family: str, tmp_path: Path) -> None:
    model, path = bundles(first_case(family))
    images, prompts = prompts_of(model.adapter, "one")
    files = [str(tmp_path / f"{number}.png") for number in range(len(images[0]))]
    for file, picture in zip(files, images[0], strict=True):
        picture.save(file)
    order = json.dumps([str(path), files, prompts[0]])
    answer = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, order], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == [answer.token_ids for answer in model.generate(images, prompts, 8)]


WITHOUT_TORCH = """
import json, sys
for absent in ("torch", "transformers", "onnx"):
    sys.modules[absent] = None  # importing it is an error
from vtc.runtime.vlm import VLM
from vtc.runtime.image import open_image
path, files, prompt = json.loads(sys.argv[1])
answers = VLM.load(path, provider="cpu", threads=1).generate([[open_image(file) for file in files]], [prompt], 8)
print(json.dumps([list(answer.token_ids) for answer in answers]))
"""


@every_family("llava_next")
def test_the_whole_model_exports(checkpoints: Checkpoints, family: str, tmp_path: Path) -> None:
    parity = exported([compressed(checkpoints.adapter(first_case(family)))], [], tmp_path / "bundle")
    assert parity.greedy_match == 1.0
    assert parity.logits_max_diff < 1e-3


@every_family("idefics3")
def test_half_precision_exports(checkpoints: Checkpoints, family: str, tmp_path: Path) -> None:
    adapter = checkpoints.adapter(first_case(family))
    if adapter.facts.decoder.experts > 1:
        pytest.skip("rounding exchanges experts that a random router finds almost equal")
    exported([compressed(adapter, *EVERYTHING)], EVERYTHING, tmp_path / "bundle", "fp16")


@pytest.mark.parametrize("family", [pytest.param("qwen2_vl", marks=pytest.mark.xdist_group("qwen2_vl"))])
def test_one_bundle_serves_several_layouts(checkpoints: Checkpoints, family: str, tmp_path: Path) -> None:
    cases = [Case(family, image_options=ImageOptions(image_size=size)) for size in ((84, 150), (150, 84))]
    models = [compressed(checkpoints.adapter(case), *EVERYTHING) for case in cases]
    assert models[0].adapter.facts.layout.grids != models[1].adapter.facts.layout.grids
    exported(models, EVERYTHING, tmp_path / "bundle")
    bundle = VLM.load(tmp_path / "bundle", provider="cpu", threads=1)
    for model, served in zip(models, bundle.manifest.images, strict=True):
        images, prompts = prompts_of(model.adapter, "one")
        assert bundle.serve(images) == served
        ours = [answer.token_ids for answer in model.generate(images, prompts, 8)]
        assert [list(answer.token_ids) for answer in bundle.generate(images, prompts, 8)] == ours
    asked = [prompts_of(model.adapter, "one") for model in models] * 2
    mixed = [images[0] for images, _ in asked], [prompts[0] for _, prompts in asked]
    alone = [bundle.generate(*one, 8)[0].token_ids for one in asked]
    assert [answer.token_ids for answer in bundle.generate(*mixed, 8)] == alone
    continuations = [[5, 6, 7]] * 4
    for scores, one in zip(bundle.score(*mixed, continuations), asked, strict=True):
        np.testing.assert_allclose(scores, bundle.score(*one, [[5, 6, 7]])[0], atol=1e-4)
    with pytest.raises(InputError, match="different layouts"):
        bundle.encode(*mixed)
    judged_in_its_own_layout(models, bundle, tmp_path / "data")


def judged_in_its_own_layout(models: list[CompressedModel], bundle: VLM, directory: Path) -> None:
    """Both models give the same answers to images of either shape, in batches of any size and order."""
    directory.mkdir()
    rows = []
    for number in range(12):
        name = f"{number}.png"
        height, width = models[number % 2].adapter.facts.layout.image_size
        image(number, (width, height)).save(directory / name)
        rows.append({"id": number, "image": name, "question": "what is red ?", "answers": ["x"], "category": "c"})
    (directory / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_dataset(directory, None, 0)
    original = by_layout(models, [offer_of(model.adapter.facts.layout) for model in models])
    both = Contestant("o", original, models[0].adapter.chat), Contestant("b", bundle, bundle.chat)
    order = np.random.default_rng(0).permutation(12).tolist()
    shuffled = Dataset("d", tuple(data.items[place] for place in order))
    texts = []
    for given, size in ((data, 1), (data, 3), (data, 8), (shuffled, 5)):
        asking = Asking(Effort(size, 6), Faults(0, 12))
        answers = [ask_all(one, given.items, asking, one.name) for one in both]
        assert answers[0] == answers[1]
        texts.append({name: answer["token_ids"] for name, answer in answers[0].items()})
    assert texts[1:] == texts[:1] * 3

"""Exported bundles answer as the PyTorch model does, for everything that a recipe can do."""

from __future__ import annotations

import gc
import json
import math
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from transformers import LlavaProcessor

import exporters.onnx as onnx_export
from exporters import copies, parity, writing
from exporters.graph_spec import GraphSpec
from exporters.lint import lint
from exporters.onnx import export
from exporters.parity import Asked, check_parity
from exporters.targets import TARGETS, target
from exporters.tensorrt.build import BuildRequest as Build
from exporters.tensorrt.build import build
from tests.exporters.conftest import Exported
from tests.exporters.export_request import request
from tests.marks import needs_rtx
from tests.runtime.nvidia import LIMITS, nvidia, write_engine_set
from tests.tiny import RECIPES, image, recipe
from vtc.artifact import staging_dir
from vtc.bundle.engines import Limits
from vtc.bundle.manifest import load_manifest
from vtc.compressed.build import apply_recipe
from vtc.errors import BundleError, InputError, NumericError, ParityError
from vtc.models.base import VLMAdapter
from vtc.resume import write_notes
from vtc.runtime.vlm import VLM
from vtc.staging import open_work

pytestmark = pytest.mark.xdist_group("exported")  # bundles are made once for all tests here

Prompts = tuple[list[list[Any]], list[str]]


@pytest.mark.parametrize("name", RECIPES)
def test_bundle_answers_as_the_model(exported: Exported, prompts: Prompts, name: str) -> None:
    wanted, path = exported(name)
    bundle = VLM.load(path)
    answers = wanted.model.generate(*prompts, 8)
    # Together, with left padding, and alone.
    assert [g.token_ids for g in bundle.generate(*prompts, 8)] == [g.token_ids for g in answers]
    for group, text, answer in zip(*prompts, answers, strict=True):
        assert bundle.generate([group], [text], 8)[0].token_ids == answer.token_ids
    forced = [[*answer.token_ids, 1] for answer in answers]
    for ours, theirs in zip(bundle.score(*prompts, forced), wanted.model.score(*prompts, forced), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("name", ["original", "visual_only"])
def test_bundle_of_a_tower_without_a_cls_token(siglip: VLMAdapter, prompts: Prompts, tmp_path: Path, name: str) -> None:
    wanted = request(siglip, *RECIPES[name])
    parity = export(wanted, tmp_path / "bundle")["fp32"]
    chosen = 1.0 if wanted.model.plan.chooses_tokens else None
    assert (parity.indices_equal, parity.greedy_match) == (chosen, 1.0)
    bundle = VLM.load(tmp_path / "bundle")
    ours, theirs = bundle.generate(*prompts, 8), wanted.model.generate(*prompts, 8)
    assert [answer.token_ids for answer in ours] == [answer.token_ids for answer in theirs]
    processor = LlavaProcessor.from_pretrained(tmp_path / "bundle")
    text = processor(images=[image(0)], text=prompts[1][0])["input_ids"][0]
    assert text.count(siglip.image_token_id) == wanted.model.plan.keep


@pytest.mark.parametrize("name", ["cut", "cuts", "learnpruner", "skip_after_cut"])
def test_bundle_keeps_the_tokens_that_the_model_keeps(exported: Exported, prompts: Prompts, name: str) -> None:
    wanted, path = exported(name)
    ours, theirs = wanted.model.kept(*prompts), VLM.load(path).kept(*prompts)
    assert [kept.tolist() for kept in theirs] == [kept.tolist() for kept in ours]


@pytest.mark.parametrize(
    "name",
    ["cls", "exit", "learnpruner", "cuts", "skip_after_cut", "text_aware", "merged_in_the_decoder"],
)
def test_engines_answer_as_onnx_runtime_does(
    exported: Exported, prompts: Prompts, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(exported(name)[1], tmp_path / "bundle")
    nvidia(monkeypatch)
    write_engine_set(bundle, replace(LIMITS, text=64))
    model, wanted = VLM.load(bundle, backend="tensorrt"), VLM.load(bundle, provider="cpu")
    theirs = wanted.generate(*prompts, 12)
    assert [answer.token_ids for answer in model.generate(*prompts, 12)] == [answer.token_ids for answer in theirs]
    kept = [places.tolist() for places in wanted.kept(*prompts)]
    assert [places.tolist() for places in model.kept(*prompts)] == kept


@pytest.mark.parametrize("name", ["cls", "exit", "visual_only", "cuts", "learnpruner"])
def test_segments_see_as_many_tokens_as_the_plan_says(exported: Exported, name: str) -> None:
    wanted, path = exported(name)
    sample = wanted.samples[0]
    ids, _, _ = wanted.model.inputs([sample.images], [sample.prompt])
    text = int((ids != wanted.model.adapter.image_token_id).sum())
    timings = VLM.load(path).generate([sample.images], [sample.prompt], 2)[0].timings
    assert list(timings.segment_lengths) == [text + s.visual_tokens for s in wanted.model.plan.segments]


def weight_bytes(path: Path) -> int:
    return sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)


def test_half_precision_is_close(adapter: VLMAdapter, tmp_path: Path) -> None:
    parity = export(request(adapter, *RECIPES["cls"], precisions=("fp32", "fp16")), tmp_path / "bundle")
    assert parity["fp32"].logits_max_diff < 1e-3
    assert 0 < parity["fp16"].logits_max_diff < 0.25
    half = VLM.load(tmp_path / "bundle", precision="fp16")
    assert half.precision == "fp16"
    single, double = (weight_bytes(tmp_path / f"bundle/onnx/decoder_model_merged{s}.onnx") for s in ("_fp16", ""))
    assert single < 0.51 * double


def test_half_precision_prunes_inside_the_decoder(
    adapter: VLMAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request(adapter, *RECIPES["learnpruner"], precisions=("fp16",))
    assert export(wanted, tmp_path / "bundle")["fp16"].logits_max_diff < 0.25
    sample = wanted.samples[0]
    ours, theirs = (m.kept([sample.images], [sample.prompt]) for m in (wanted.model, VLM.load(tmp_path / "bundle")))
    assert [kept.shape for kept in theirs] == [kept.shape for kept in ours] == [(1, 7), (1, 3)]
    nvidia(monkeypatch)
    write_engine_set(tmp_path / "bundle")
    on_engines, wanted = (VLM.load(tmp_path / "bundle", backend=name) for name in ("tensorrt", "onnxruntime"))
    answers, expected = (m.generate([sample.images], [sample.prompt], 8)[0] for m in (on_engines, wanted))
    assert answers.token_ids == expected.token_ids


def test_graphs_have_the_names_and_axes_that_runtimes_look_for(exported: Exported) -> None:
    _, path = exported("cls")
    shapes = {}
    for name in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
        graph = onnx.load(path / f"onnx/{name}.onnx").graph
        for value in (*graph.input, *graph.output):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = [d.dim_param or d.dim_value for d in dims]
    assert shapes["pixel_values"] == ["batch_size", 3, 56, 56]
    assert shapes["image_features"] == ["batch_size", 5, 48]
    assert shapes["keep_indices"] == ["batch_size", 5]
    assert shapes["input_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shapes["past_key_values.3.value"] == ["batch_size", 2, "past_sequence_length", 12]
    assert shapes["present.0.key"][:2] == ["batch_size", 2]
    assert shapes["logits"][1] == 1


@pytest.mark.parametrize("name", RECIPES)
def test_graphs_pass_the_linter(exported: Exported, name: str) -> None:
    _, path = exported(name)
    for graph in (path / "onnx").iterdir():
        for named in (None, *TARGETS):
            assert lint(graph, constant_tokens=graph.stem == "vision_encoder", target=named) == []


def test_target_that_cannot_take_the_graphs(adapter: VLMAdapter, tmp_path: Path) -> None:
    small = replace(TARGETS[0], name="small", operators=replace(TARGETS[0].operators, max_topk_k=4))
    with pytest.raises(InputError, match=r"target 'small' cannot take fp32 .*vision_encoder.onnx: TopK .* at most 4"):
        export(request(adapter, *RECIPES["cls"], targets=[small]), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_target_that_cannot_take_the_opset(adapter: VLMAdapter, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--opset 22 is above 20"):
        export(request(adapter, targets=[target("jetson-orin-jp6")], opset=22), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@needs_rtx
@pytest.mark.parametrize("name", ["text_aware", "learnpruner", "merged_in_the_decoder"])
def test_engines_can_be_built_of_all_graphs(exported: Exported, tmp_path: Path, name: str) -> None:
    bundle = load_manifest(exported(name)[1])
    limits = Limits(batch=2, images=2)
    built = build(Build(bundle, target("rtx"), "fp32", limits=limits), tmp_path / "engines")
    assert list(built.engines) == list(bundle.graphs)
    pixels = [graph.profiles[0].shapes["pixel_values"] for graph in built.engines.values() if "vision" in graph.file]
    assert [[shape[0] for shape in three] for three in pixels] == [[1, 1, 4]]


def test_config_and_processor_know_the_smaller_model(adapter: VLMAdapter, tmp_path: Path) -> None:
    stages = [*RECIPES["cls"], *RECIPES["depth"]]
    export(request(adapter, *stages), tmp_path / "bundle")
    config = json.loads((tmp_path / "bundle/config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 3
    assert config["image_seq_length"] == 5


def test_interrupted_export_goes_on_where_it_stopped(
    adapter: VLMAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, out = request(adapter, *RECIPES["cls"]), tmp_path / "bundle"
    done: list[str] = []
    real = onnx_export.export_graph

    def interrupted(spec: Any, path: Path, **options: Any) -> None:
        if spec.name == "decoder_model_merged":
            raise KeyboardInterrupt
        done.append(spec.name)
        real(spec, path, **options)

    monkeypatch.setattr(onnx_export, "export_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(wanted, out)
    assert not out.exists()
    assert done == ["vision_encoder", "embed_tokens"]

    def counted(spec: Any, path: Path, **options: Any) -> None:
        done.append(spec.name)
        real(spec, path, **options)

    monkeypatch.setattr(onnx_export, "export_graph", counted)
    export(wanted, out)
    assert done == ["vision_encoder", "embed_tokens", "decoder_model_merged"]
    assert not staging_dir(out).exists()


def test_half_written_graph_is_not_trusted(adapter: VLMAdapter, tmp_path: Path) -> None:
    wanted, out = request(adapter, *RECIPES["cls"]), tmp_path / "bundle"
    with open_work(out, "test") as work:
        work.claim(onnx_export.NOTES, "onnx/vision_encoder.onnx")
        (work.path / "onnx").mkdir()
        write_notes(
            work.path / onnx_export.NOTES, {"key": wanted.key, "graphs": {"onnx/vision_encoder.onnx": "0" * 64}}
        )
        (work.path / "onnx/vision_encoder.onnx").write_bytes(b"half")
    export(wanted, out)
    VLM.load(out)


def test_wrong_graph_is_never_published(adapter: VLMAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnx_export.export_graph

    def spoiled(spec: Any, path: Path, **options: Any) -> None:
        real(spec, path, **options)
        if spec.name == "decoder_model_merged":
            model = onnx.load(path)
            weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1.5).tobytes()
            onnx.save(model, path)

    monkeypatch.setattr(onnx_export, "export_graph", spoiled)
    with pytest.raises(ParityError, match="nothing was published"):
        export(request(adapter, *RECIPES["cls"]), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_parity_refuses_a_different_choice_of_tokens(adapter: VLMAdapter, exported: Exported) -> None:
    other = request(adapter, {"kind": "prune", "keep": 0.25, "selector": {"name": "random", "seed": 4}})
    with pytest.raises(ParityError, match="other tokens of an image than the model, of 4"):
        check_parity(Asked([other.model], other.samples), VLM.load(exported("random")[1]), "fp32")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("of", ["encode", "generate", "score"])
def test_parity_refuses_what_is_not_a_number(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, of: str, strict: bool
) -> None:
    """NaN beside NaN is no parity, nor where other tokens are kept, so that values are not compared."""
    wanted, path = exported("random")
    bundle = VLM.load(path)
    features, places = bundle.encode([wanted.samples[0].images], [wanted.samples[0].prompt])

    def overflown(*_: Any) -> Any:
        if of == "generate":
            raise NumericError("not numbers")
        return (features * np.nan, places) if of == "encode" else [np.full((17, 4), np.inf, np.float32)]

    monkeypatch.setattr(bundle, of, overflown)
    monkeypatch.setattr(parity, "_moved_in_decoder", lambda *_: [parity.Moved(1, 0.25)])
    answers = [Mock(token_ids=[1] * 16)]
    if of != "encode":
        monkeypatch.setattr(wanted.model, of, lambda *_: answers if of == "generate" else overflown())
    with pytest.raises(ParityError, match=r"compute what is not a number \(NaN or infinity\); nothing was published"):
        parity.compare(Asked([wanted.model], wanted.samples), bundle, "fp32", strict=strict)


def test_weights_of_what_was_trained_must_be_numbers(adapter: VLMAdapter) -> None:
    trained = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(trained.weight, math.nan)
    with pytest.raises(NumericError, match=r"^weight holds what is not a number"):
        onnx_export._check_weights(Mock(adapter=adapter, trained=trained), "fp16")


def test_rounding_that_keeps_other_tokens_is_refused(adapter: VLMAdapter, exported: Exported) -> None:
    other = request(adapter, {"kind": "prune", "keep": 0.25, "selector": {"name": "random", "seed": 4}})
    bundle = VLM.load(exported("random")[1])
    with pytest.raises(
        ParityError,
        match=r"changes what is kept: .* where 50% is the least",
    ):
        parity.compare(Asked([other.model], other.samples), bundle, "fp32")


def test_parity_accepts_what_rounding_does_to_the_model_too(
    adapter: VLMAdapter, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = request(adapter, {"kind": "prune", "keep": 0.25, "selector": {"name": "random", "seed": 4}})
    monkeypatch.setattr(parity, "_moved_by_noise", lambda *_: 4)
    found = check_parity(Asked([other.model], other.samples), VLM.load(exported("random")[1]), "fp32")
    assert found.indices_equal == 0.0


def test_a_choice_that_rounding_does_not_move_is_told_from_one_that_it_does(adapter: VLMAdapter) -> None:
    wanted = request(adapter, *RECIPES["cls"])
    assert parity._moved_by_noise(wanted.model, wanted.samples[0]) == 0
    monkey = request(adapter, *RECIPES["cls"])
    monkey.model.vision.stages[0].selector.score = lambda tokens: (1e7 * tokens.features.sum(dim=-1)).sin()
    assert parity._moved_by_noise(monkey.model, monkey.samples[0]) > 0


def test_large_weights_go_beside_their_graph(
    adapter: VLMAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "EXTERNAL_DATA_BYTES", 50_000)
    wanted = request(adapter, *RECIPES["cls"])
    with open_work(tmp_path / "bundle", "test") as work:
        work.claim(onnx_export.NOTES, "onnx/*")
        (work.path / "onnx").mkdir()
        write_notes(work.path / onnx_export.NOTES, {"key": wanted.key, "graphs": {}})
        (work.path / "onnx/decoder_model_merged.onnx_data").write_bytes(b"half" * 100_000)
    export(wanted, tmp_path / "bundle")
    graph, data = (tmp_path / f"bundle/onnx/decoder_model_merged.onnx{suffix}" for suffix in ("", "_data"))
    decoder = [tensor for segment in wanted.model.segments for tensor in segment.parameters()]
    assert data.stat().st_size < 1.1 * sum(tensor.nbytes for tensor in decoder)
    assert data.stat().st_mode == graph.stat().st_mode
    assert VLM.load(tmp_path / "bundle").ask(image(0), "what is it ?", 4) is not None
    beside = {path.name.removesuffix("_data") for path in (tmp_path / "bundle/onnx").glob("*_data")}
    told = json.loads((tmp_path / "bundle/config.json").read_text())["transformers.js_config"]
    assert set(told["use_external_data_format"]) == beside >= {graph.name}


def test_other_directories_are_left_alone(adapter: VLMAdapter, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(BundleError, match="not a bundle"):
        export(request(adapter, *RECIPES["cls"]), tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "keep me"


def test_equal_constants_are_written_and_worked_on_once(tmp_path: Path) -> None:
    """Of a size that the exporter itself neither folds nor compares, as the positions of a large image are."""

    class Layers(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            for _ in range(3):
                places = torch.tensor(list(range(2000)), device=hidden.device)
                frequencies = torch.tensor([[2.0**-number for number in range(200)]], device=hidden.device)
                hidden = hidden + (places[:, None] * frequencies).cos()
            return hidden

    spec = GraphSpec("layers", Layers(), (torch.zeros(2, 2000, 200),), ["hidden"], ["out"], ({0: "batch_size"},))
    writing.export_graph(spec, tmp_path / "layers.onnx")
    graph = onnx.load(tmp_path / "layers.onnx").graph
    assert [node.op_type for node in graph.node].count("Cos") == 1
    assert sum(2000 in constant.dims for constant in graph.initializer) == 1


def test_copies_in_half_precision_share_what_the_models_share(
    siglip: VLMAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "OWN_BLOCK_ELEMENTS", 1000)
    models = [apply_recipe(siglip, recipe(*RECIPES[name])) for name in ("original", "visual_only")]
    one, other = copies.cast_copy(models, torch.float16)
    head = one.adapter.head.weight
    assert head is one.adapter.embed_tokens.weight is other.adapter.head.weight  # tied
    assert {weight.dtype for weight in one.parameters()} == {torch.float16}
    assert torch.equal(head, siglip.head.weight.half())
    copies.discard([one, other])
    assert not head.any()
    assert siglip.head.weight.dtype == torch.float32
    assert siglip.head.weight.any()


def test_copies_that_are_cast_again_hold_no_block(siglip: VLMAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "OWN_BLOCK_ELEMENTS", 1000)
    [one] = copies.cast_copy([apply_recipe(siglip, recipe(*RECIPES["original"]))], torch.float16)
    block = weakref.ref(one.adapter.head.weight.block)
    copies.cast_weights([one], torch.float32)
    gc.collect()
    assert block() is None
    assert torch.equal(one.adapter.head.weight, siglip.head.weight.half().float())
    assert one.adapter.head.weight is one.adapter.embed_tokens.weight  # tied


def test_vision_graphs_are_closed_before_the_decoder_is_opened(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, path = exported("cls")
    opened: list[str] = []
    bundle = parity.EncodedOnce(load_manifest(path), "fp32")
    real = bundle.backend.open

    def with_readings(name: str) -> Any:
        opened.append(name)
        if name.startswith("decoder"):
            assert not bundle.vision.run_ms(bundle.manifest.images[0])  # closed
        return real(name)

    monkeypatch.setattr(bundle.backend, "open", with_readings)
    found = check_parity(Asked(wanted.models, wanted.samples), bundle, "fp32")
    assert (found.indices_equal, found.greedy_match) == (1.0, 1.0)
    assert sorted(opened) == ["decoder_model_merged", "embed_tokens", "vision_encoder"]  # each once

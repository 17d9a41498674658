"""Experts of visual tokens in a bundle: graphs for prompts have them beside the others, graphs for steps do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch.utils._pytree import tree_leaves

from exporters import writing
from exporters.graphs import graph_specs
from exporters.onnx import export
from exporters.rewriting import rewrite
from exporters.steps import step_name
from exporters.writing import external_data
from tests.exporters.export_request import request
from tests.exporters.rewriting.decoders import assert_alike, export_decoder
from tests.tiny import RECIPES, compressed, image
from vtc.bundle.external_data import stacked_bytes
from vtc.compressed.model import CompressedModel
from vtc.models.base import VLMAdapter
from vtc.runtime.decoder import ROWS
from vtc.runtime.vlm import VLM

OWN = {"kind": "visual_experts", "experts": [[1, 4, 6], [0, 2, 7], [3, 4, 5], [0, 1, 2]]}


def assert_same(bundle: VLM, model: CompressedModel) -> None:
    """Prompts of one, no and two images, in one batch and alone, are answered and scored alike."""
    texts = [model.adapter.chat("what is it ?", count) for count in (1, 0, 2)]
    images: Sequence[Any] = [[image(0)], [], [image(1), image(2)]]
    answers = model.generate(images, texts, 6)
    assert [one.token_ids for one in bundle.generate(images, texts, 6)] == [one.token_ids for one in answers]
    for own, text, answer in zip(images, texts, answers, strict=True):
        assert bundle.generate([own], [text], 6)[0].token_ids == answer.token_ids
    forced = [[*answer.token_ids, 1] for answer in answers]
    for ours, theirs in zip(bundle.score(images, texts, forced), model.score(images, texts, forced), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def inputs(path: Path) -> set[str]:
    """Names of a graph's inputs."""
    return {value.name for value in onnx.load(path, load_external_data=False).graph.input}


def stacks(path: Path) -> list[onnx.TensorProto]:
    """Stacked matrices of a graph."""
    return [one for one in onnx.load(path, load_external_data=False).graph.initializer if len(one.dims) == 3]


BUDGETS = {"kind": "prune", "keep": [6, 12], "selector": "uniform"}
DECODERS = {
    "whole": (["model_merged"], [{"kind": "drop_layers", "layers": [1, 2, 3]}]),
    "cut": (
        ["segment_0", "segment_1"],
        [{"kind": "prune_in_decoder", "layer": 1, "keep": 4}, {"kind": "drop_layers", "layers": [2, 3]}],
    ),
}
"""Graphs of a decoder, and what makes it so; exports take as long as it is deep."""


@pytest.mark.parametrize("name", ["whole", pytest.param("cut", marks=pytest.mark.full)])
def test_a_bundle_holds_them_once_and_answers_alike(
    mixture: VLMAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(writing, "EXTERNAL_DATA_BYTES", 50_000)
    graphs, stages = DECODERS[name]
    wanted = request(mixture, BUDGETS, *stages, OWN)
    assert export(wanted, tmp_path / "bundle")["fp32"].greedy_match == 1.0
    bundle = VLM.load(tmp_path / "bundle")
    assert [one.plan.keep for one in wanted.models] == [12, 6]
    for model in wanted.models:
        assert_same(bundle.at_budget(model.plan.keep), model)
    assert_same(VLM.load(tmp_path / "bundle", backend="openvino"), wanted.model)

    decoder = mixture.facts.decoder
    for graph in (f"decoder_{one}" for one in graphs):
        whole, step = (tmp_path / f"bundle/onnx/{one}.onnx" for one in (graph, step_name(graph)))
        assert set(ROWS) <= inputs(whole) == inputs(step)  # a cache goes from one to the other
        assert [sorted(one.dims[0] for one in stacks(path)) for path in (whole, step)] == [[3, 3, 8, 8], [8, 8]]
        places = [{entry.key: entry.value for entry in one.external_data} for one in stacks(whole)]
        assert len({place["offset"] for place in places}) == 2
        assert stacked_bytes(whole) == 4 * 8 * 3 * decoder.width * decoder.ffn
        kept = [one for one in onnx.load(whole, load_external_data=False).graph.initializer if one.external_data]
        stored = 4 * sum(int(np.prod(one.dims)) for one in kept if len(one.dims) != 3 or one.dims[0] != 3)
        assert external_data(whole).stat().st_size == pytest.approx(stored, rel=0.01)


def test_experts_in_few_bits_are_stored_once_too(
    mixture: VLMAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "EXTERNAL_DATA_BYTES", 5_000)
    wanted = request(mixture, {"kind": "drop_layers", "layers": [1, 2, 3]}, OWN, precisions=("q4",))
    assert export(wanted, tmp_path / "bundle")["q4"].greedy_match == 1.0
    found = [one for one in stacks(tmp_path / "bundle/onnx/decoder_model_merged_q4.onnx") if "numbers" in one.name]
    assert {one.data_type for one in found} == {onnx.TensorProto.UINT4}
    assert sorted(one.dims[0] for one in found) == [3, 3, 8, 8]
    places = [{entry.key: entry.value for entry in one.external_data} for one in found]
    assert len({place["offset"] for place in places}) == 2


@pytest.mark.full
def test_every_precision_is_proved(mixture: VLMAdapter, tmp_path: Path) -> None:
    precisions = ("fp32", "fp16", "bf16", "q4", "int8")
    wanted = request(mixture, *DECODERS["whole"][1], OWN, precisions=precisions, optimised=("fp16-ort", "q4-ort"))
    found = export(wanted, tmp_path / "bundle")
    assert set(found) == {*precisions, "fp16-ort", "q4-ort"}  # what is no near-tie is refused
    assert {found[name].greedy_match for name in ("fp16", "fp16-ort", "q4-ort")} == {1.0}


def test_graphs_of_text_alone_tell_no_tokens_apart(mixture: VLMAdapter) -> None:
    model = compressed(mixture, *RECIPES["visual_only"], OWN)
    graphs = [spec for spec in graph_specs([model], torch.float32) if spec.name.startswith("decoder")]
    assert [set(ROWS) <= set(spec.inputs) for spec in graphs] == [True, False, True]
    # Precisions are measured on what segments are called with, in steps too: that is what their graphs take.
    for segment, spec in zip(model.segments, graphs, strict=True):
        given: list[int] = []
        handle = segment.register_forward_pre_hook(
            lambda _, args, given=given: given.append(sum(isinstance(one, torch.Tensor) for one in tree_leaves(args)))
        )
        model.generate([[image(0)], []], [mixture.chat("what is it ?"), mixture.chat("how ?", 0)], 3)
        handle.remove()
        assert len(given) > 1
        assert set(given) == {len(spec.inputs)}


def test_a_decoder_for_onnx_runtime_computes_the_same(tmp_path: Path) -> None:
    """There rows are padded on the right, so that tokens stand elsewhere, and no token is visual in a step."""
    own = {"kind": "visual_experts", "experts": [[1, 3], [0, 2]]}
    portable = export_decoder("qwen3_vl_moe", tmp_path, {"kind": "drop_layers", "layers": [1]}, own)
    model = ir.load(portable)
    rewritten = rewrite(model, "ort", "decoder_model_merged")
    ir.save(model, tmp_path / "rewritten.onnx")
    assert (rewritten.fused["MoE"], rewritten.left) == (2, [])
    assert_alike(portable, tmp_path / "rewritten.onnx", in_place=True)

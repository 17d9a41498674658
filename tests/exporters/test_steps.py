"""Graphs for steps: the experts that tokens chose, of the weights that the segment's own graph has."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.external_data_helper import uses_external_data

from exporters.graph_spec import GraphSpec
from exporters.lint import lint
from exporters.rewriting import rewrite
from exporters.rewriting.edit import CONTRIB
from exporters.rewriting.experts import choices, find_mixtures, fuse_mixtures
from exporters.rewriting.gathering import gather_mixtures
from exporters.steps import WHOLE, add_steps, step_name, step_rows
from exporters.targets import TARGETS
from exporters.writing import export_graph
from tests.exporters.rewriting.decoders import LAYERS, assert_alike, export_decoder
from vtc.bundle.external_data import stacked_bytes
from vtc.facts.model import DecoderFacts
from vtc.models import load_adapter
from vtc.models.random.tiny_families import write_tiny


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_decoder("qwen3_vl_moe", tmp_path_factory.mktemp("moe"))


def test_it_computes_the_same_of_the_weights_in_the_same_file(decoder: Path, tmp_path: Path) -> None:
    whole, data = tmp_path / decoder.name, tmp_path / f"{decoder.name}_data"
    ir.save(ir.load(decoder), whole, external_data=data.name, size_threshold_bytes=1024)
    before = hashlib.sha256(data.read_bytes()).hexdigest()
    paths = {WHOLE: whole, "embed_tokens": tmp_path / "embed_tokens.onnx"}
    add_steps(paths)
    step = paths["decoder_step"]
    assert list(paths) == [WHOLE, "embed_tokens", "decoder_step"]
    assert_alike(whole, step, in_place=False)
    assert hashlib.sha256(data.read_bytes()).hexdigest() == before
    places = [
        {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in onnx.load(path, load_external_data=False).graph.initializer
            if uses_external_data(tensor)
        }
        for path in (whole, step)
    ]
    assert places[0] == places[1]
    assert stacked_bytes(whole) == stacked_bytes(step) == 4 * LAYERS * 4 * 3 * 32 * 48
    assert step.stat().st_size < whole.stat().st_size

    model = ir.load(step)
    assert choices(model.graph) == LAYERS
    assert not find_mixtures(model)
    experts = {value for node in model.graph if node.op_type == "MatMul" for value in node.inputs[:1]}
    assert sum(value.producer().op_type == "Gather" for value in experts if value and value.producer()) == 2 * LAYERS
    assert not lint(step)
    assert not [finding for one in TARGETS for finding in lint(step, target=one)]


def test_it_is_run_while_few_matrices_are_gathered() -> None:
    facts = DecoderFacts(48, 2048, 32, 4, 128, 768, 1000, 2048, True, experts=128, active_experts=8)
    assert step_rows(facts) == 8
    assert step_rows(replace(facts, active_experts=1)) == 64
    assert step_rows(replace(facts, experts=2, active_experts=2)) == 0
    assert step_rows(replace(facts, experts=1, active_experts=1)) == 0
    assert [step_name(name) for name in (WHOLE, "decoder_segment_2", "embed_tokens")] == [
        "decoder_step",
        "decoder_step_2",
        "embed_tokens",
    ]


@pytest.mark.parametrize("kind", ["activation", "router"])
def test_a_mixture_of_another_kind_stays_and_is_told(decoder: Path, tmp_path: Path, kind: str) -> None:
    portable = tmp_path / "portable.onnx"
    model = ir.load(decoder)
    if kind == "activation":
        changed = next(node for node in model.graph if node.op_type == "Sigmoid")
        changed.op_type = "HardSigmoid"
    else:  # weights that add up to less than 1
        changed = next(one.weights.producer() for one in find_mixtures(model))
        ir.convenience.replace_all_uses_with(changed.outputs[0], changed.inputs[0])
    ir.save(model, portable)
    model = ir.load(portable)
    rewritten = rewrite(model, "ort", WHOLE)
    ir.save(model, tmp_path / "rewritten.onnx")
    assert rewritten.fused["MoE"] == LAYERS - 1
    (told,) = rewritten.left
    assert told.startswith("1 of 2 mixtures compute every expert: router, activation or type is not MoE's")
    assert_alike(portable, tmp_path / "rewritten.onnx", in_place=True)


def test_mixtures_of_16_bits_sum_in_float32_between_casts(tmp_path: Path) -> None:
    write_tiny("qwen3_vl_moe", tmp_path / "model", encoder_layers=2, decoder_layers=2)
    adapter = load_adapter(tmp_path / "model")
    adapter.set_decoder_attention("grouped")
    layer: Any = adapter.decoder_layers[0]
    tokens = torch.randn(5, 1, 48, generator=torch.Generator().manual_seed(0)).half()
    spec = GraphSpec("mixture", layer.mlp.half(), (tokens,), ["x"], ["y"], ({0: "rows"},))
    export_graph(spec, tmp_path / "mixture.onnx")
    found = []
    for change in (find_mixtures, gather_mixtures, fuse_mixtures):
        model = ir.load(tmp_path / "mixture.onnx")
        change(model)
        assert len(find_mixtures(model)) == (change is find_mixtures)
        model.opset_imports[CONTRIB] = 1
        path = tmp_path / f"{change.__name__}.onnx"
        ir.save(model, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"x": tokens.numpy()})[0].astype(np.float32))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-3 * np.abs(found[0]).max())

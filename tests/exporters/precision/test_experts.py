"""Experts in 4 and 8 bits: every form takes the same stored bytes, and computes what a rounded model computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from exporters import writing
from exporters.graph_spec import GraphSpec
from exporters.lint import lint
from exporters.onnx import export
from exporters.optimising import optimise_bundle
from exporters.parity import Parity
from exporters.precision import PRECISIONS, derive, precision
from exporters.precision.experts import expert_parameters, expert_stacks, nearest_experts, store_experts
from exporters.rewriting.edit import CONTRIB
from exporters.rewriting.experts import find_mixtures, fuse_mixtures, round_no_inputs
from exporters.rewriting.gathering import gather_mixtures
from exporters.targets import TARGETS
from exporters.writing import export_graph
from tests.exporters.export_request import request
from tests.tiny import image, write_checkpoint
from vtc.bundle.external_data import stacked_bytes, widened_bytes
from vtc.bundle.manifest import Manifest, load_manifest
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter
from vtc.models.random.shapes import TINY_MIXTURE
from vtc.runtime.needs import bundle_need
from vtc.runtime.onnxruntime import backend
from vtc.runtime.onnxruntime.backend import OnnxRuntime
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.vlm import VLM

pytestmark = pytest.mark.xdist_group("experts in few bits")
FEW_BITS = {"q4": 8, "int8": 4}
"""Precisions, and how many of their numbers take the room of one of float32."""
LAYERS = 2
DROPPED = {"kind": "drop_layers", "layers": [2, 3]}


@pytest.fixture(scope="module")
def exported(mixture: VLMAdapter, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Parity], Path]:
    """A bundle whose weights lie beside its graphs, as those of real models do."""
    path = tmp_path_factory.mktemp("experts") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derive, "save_graph", save_with_weights_beside)
        wanted = request(mixture, DROPPED, precisions=tuple(FEW_BITS), optimised=("q4-ort",))
        return export(wanted, path), path


def save_with_weights_beside(model: ir.Model, path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "EXTERNAL_DATA_BYTES", 2**14)
        patch.setattr(writing, "EXTERNAL_TENSOR_BYTES", 256)
        writing.save_graph(model, path)


def decoder(path: Path, name: str) -> Path:
    return path / "onnx" / f"{name}.onnx"


def places(graph: Path) -> dict[tuple[str, str], int]:
    """File and place of each stacked matrix, and how many bytes it takes."""
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    entries = [{one.key: one.value for one in tensor.external_data} for tensor in tensors if len(tensor.dims) == 3]
    return {(one["location"], one["offset"]): int(one["length"]) for one in entries}


def test_bundles_are_what_a_rounded_model_computes(exported: tuple[dict[str, Parity], Path]) -> None:
    parity, _ = exported
    assert list(parity) == ["q4", "q4-ort", "int8"]
    for found in parity.values():
        assert found.logits_max_diff < 1e-4
        assert found.greedy_match == 1.0
        assert found.original is not None
        assert found.original.logits_max_diff > 10 * found.logits_max_diff


@pytest.mark.parametrize("name", FEW_BITS)
def test_experts_are_stored_small_and_once(exported: tuple[dict[str, Parity], Path], name: str) -> None:
    _, path = exported
    whole, step = decoder(path, f"decoder_model_merged_{name}"), decoder(path, f"decoder_step_{name}")
    stacks = {t.name: t for t in onnx.load(whole).graph.initializer if len(t.dims) == 3}
    numbers = [tensor for key, tensor in stacks.items() if key.endswith("/numbers")]
    assert {tensor.data_type for tensor in numbers} == {TensorProto.UINT4 if name == "q4" else TensorProto.UINT8}
    sizes = [8 * 32 * 48, 8 * 64 * 48]
    assert sorted(len(tensor.raw_data) for tensor in numbers) == sorted(
        LAYERS * [4 * n // FEW_BITS[name] for n in sizes]
    )
    # Beside them a scale for each 16 numbers, and of all layers together a zero point for each scale.
    scales, zeros = LAYERS * 4 * sum(sizes) // 16, 4 * sum(sizes) // 16 // FEW_BITS[name]
    assert stacked_bytes(whole) == LAYERS * 4 * sum(sizes) // FEW_BITS[name] + scales + zeros

    others = [step] + ([decoder(path, "decoder_model_merged_q4_ort")] if name == "q4" else [])
    for other in others:
        assert places(other).items() < places(whole).items()
        assert len(places(other)) == 2 * 2 * LAYERS
        assert stacked_bytes(whole) - stacked_bytes(other) == zeros
    assert {file for file, _ in places(whole)} == {f"{whole.name}_data"}


def test_needs_count_experts_where_they_are(exported: tuple[dict[str, Parity], Path]) -> None:
    manifest = load_manifest(exported[1])
    portable, fused = (bundle_need(manifest, name, "cpu") for name in ("q4", "q4-ort"))
    stored = stacked_bytes(decoder(exported[1], "decoder_model_merged_q4"))
    assert portable.mapped - fused.mapped == stored
    assert widened_bytes(decoder(exported[1], "decoder_model_merged_q4")) == 2 * 4 * 8 * 64 * 48
    # A portable graph makes floats of them layer by layer; the operator has a copy of the numbers.
    nodes = manifest.graph_bytes("q4") - manifest.graph_bytes("q4-ort")
    assert portable.work - fused.work == 2 * 4 * 8 * 64 * 48 - stored + nodes


def test_floats_of_experts_are_not_kept(
    exported: tuple[dict[str, Parity], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, bool] = {}

    class Opened(backend.Graph):
        def __init__(self, path: Path, *given: Any, **options: Any) -> None:
            kept[path.stem] = options["keep_freed"]
            super().__init__(path, *given, **options)

    monkeypatch.setattr(backend, "Graph", Opened)
    bundle = VLM.load(exported[1], precision="q4-portable")
    bundle.generate([[image(1)]], [bundle.chat("what is it ?")], 2)
    assert [name for name, keeps in kept.items() if not keeps] == ["decoder_model_merged_q4"]
    assert "decoder_step_q4" in kept


def test_forms_have_no_floats_of_experts(exported: tuple[dict[str, Parity], Path]) -> None:
    _, path = exported
    node = onnx.load(decoder(path, "decoder_model_merged_q4_ort"), load_external_data=False).graph.node
    mixtures = [{a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in node if n.op_type == "QMoE"]
    assert [(one["expert_weight_bits"], one["block_size"], one["accuracy_level"]) for one in mixtures] == [
        (4, 16, 4)
    ] * 2
    for name in FEW_BITS:
        graph = decoder(path, f"decoder_step_{name}")
        assert not find_mixtures(ir.load(graph))
        assert not lint(graph, max_opset=21)
        found = lint(decoder(path, f"decoder_model_merged_{name}"), max_opset=21, zero_points=True)
        assert not found
        told = lint(decoder(path, f"decoder_model_merged_{name}"), target=TARGETS[0])
        assert any("which no target takes; quantise symmetrically" in str(finding) for finding in told)


@pytest.mark.parametrize("name", FEW_BITS)
def test_steps_answer_alike(exported: tuple[dict[str, Parity], Path], mixture: VLMAdapter, name: str) -> None:
    exact = exactly_run(load_manifest(exported[1]))
    whole = replace(exact, segments=tuple(replace(one, step=None) for one in exact.segments))
    models = [VLM(one, OnnxRuntime(one, RuntimeOptions(precision=f"{name}-portable"))) for one in (whole, exact)]
    asked = [[image(0)]], [mixture.chat("what is it ?")]
    wanted, steps = (model.generate(*asked, 8)[0].token_ids for model in models)
    assert wanted == steps
    logits = [model.score(*asked, [[*wanted, 1]])[0] for model in models]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)


@pytest.mark.parametrize("name", FEW_BITS)
def test_openvino_takes_them(exported: tuple[dict[str, Parity], Path], mixture: VLMAdapter, name: str) -> None:
    pytest.importorskip("openvino")
    from vtc.runtime.openvino.backend import OpenVINO

    exact = exactly_run(load_manifest(exported[1]))
    wanted = VLM(exact, OnnxRuntime(exact, RuntimeOptions(precision=f"{name}-portable")))
    model = VLM(exact, OpenVINO(exact, RuntimeOptions(backend="openvino", precision=name, threads=1)))
    asked = [[image(0)]], [mixture.chat("what is it ?")]
    tokens = wanted.generate(*asked, 8)[0].token_ids
    assert model.generate(*asked, 8)[0].token_ids == tokens
    logits = [one.score(*asked, [[*tokens, 1]])[0] for one in (wanted, model)]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-3)


def exactly_run(manifest: Manifest) -> Manifest:
    """A bundle whose variants round no inputs."""
    return replace(manifest, variants=tuple(replace(one, session={}) for one in manifest.variants))


def test_an_optimised_variant_is_made_of_a_bundle(exported: tuple[dict[str, Parity], Path], tmp_path: Path) -> None:
    _, path = exported
    found = optimise_bundle(load_manifest(path), ["int8-ort"], tmp_path / "b", samples=1)["int8-ort"]
    assert found.logits_max_diff < 1e-4
    assert found.greedy_match == 1.0
    assert not [file for file in tmp_path.rglob(".*") if file.is_file()]
    made = decoder(tmp_path / "b", "decoder_model_merged_int8_ort")
    assert places(made).items() < places(decoder(path, "decoder_model_merged_int8")).items()


@pytest.fixture(scope="module")
def layer(mixture: VLMAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of one layer's mixture, in which every expert is computed."""
    path = tmp_path_factory.mktemp("layer") / "mixture.onnx"
    return export_layer(mixture, path)


def export_layer(adapter: VLMAdapter, path: Path) -> Path:
    adapter.set_decoder_attention("grouped")
    block: Any = adapter.decoder_layers[0]
    tokens = torch.randn(5, 1, 48, generator=torch.Generator().manual_seed(0))
    try:
        export_graph(GraphSpec("mixture", block.mlp, (tokens,), ["x"], ["y"], ({0: "rows"},)), path)
    finally:
        adapter.set_decoder_attention("sdpa")
    return path


def run(model: ir.Model, path: Path, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    model.opset_imports[CONTRIB] = 1
    ir.save(model, path)
    found: np.ndarray[Any, Any] = onnxruntime.InferenceSession(path).run(None, {"x": tokens})[0]
    return found


@pytest.mark.parametrize("name", FEW_BITS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_mixture_computes_the_same_in_every_form(
    mixture: VLMAdapter, layer: Path, tmp_path: Path, name: str, tokens: int
) -> None:
    weights = nearest_experts(mixture, precision(name))
    proto = onnx.load(layer)
    assert store_experts(proto, expert_stacks(mixture, torch.float32), weights) == (2, 0)
    proto.opset_import[0].version = 21
    stored = tmp_path / "stored.onnx"
    onnx.save(proto, stored)
    given = np.random.default_rng(1).standard_normal((tokens, 1, 48), dtype=np.float32)
    wanted = rounded_layer(mixture, {key: one.values() for key, one in weights.items()}, given)
    exact = {"portable": ir.load(stored), "gathered": ir.load(stored), "operator": ir.load(stored)}
    assert gather_mixtures(exact["gathered"]) == 1
    assert not fuse_mixtures(exact["operator"])
    as_run = run(exact["operator"].clone(), tmp_path / "as_run.onnx", given)
    assert round_no_inputs(exact["operator"]) == 1
    largest = np.abs(wanted).max()
    for form, model in exact.items():
        np.testing.assert_allclose(run(model, tmp_path / f"{form}.onnx", given), wanted, atol=2e-5 * largest)
    off = np.abs(as_run - wanted).max() / largest
    assert 1e-4 < off < 0.04  # inputs are rounded to 8 bits


def rounded_layer(
    adapter: VLMAdapter, weights: Mapping[str, np.ndarray[Any, Any]], tokens: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """What the first layer's mixture computes in PyTorch with other weights."""
    block: Any = adapter.decoder_layers[0]
    first = [(name, one) for name, one in expert_parameters(adapter)][:2]
    whole = [one.data for _, one in first]
    try:
        for name, one in first:
            one.data = torch.from_numpy(weights[name]).view(one.shape)
        with torch.inference_mode():
            found: np.ndarray[Any, Any] = block.mlp(torch.from_numpy(tokens)).numpy()
            return found
    finally:
        for (_, one), values in zip(first, whole, strict=True):
            one.data = values


def test_experts_whose_inputs_do_not_divide_stay_and_are_counted(tmp_path: Path) -> None:
    like = replace(TINY_MIXTURE, decoder=replace(TINY_MIXTURE.decoder, ffn=24))
    adapter = load_adapter(write_checkpoint(tmp_path / "model", like=like))
    assert not nearest_experts(adapter, precision("q4"))
    proto = onnx.load(export_layer(adapter, tmp_path / "mixture.onnx"))
    before = proto.SerializeToString()
    assert store_experts(proto, expert_stacks(adapter, torch.float32), {}) == (0, 2)
    assert len(proto.SerializeToString()) == len(before)


def test_precisions_for_engines_leave_experts(mixture: VLMAdapter) -> None:
    stored = [one.name for one in PRECISIONS if nearest_experts(mixture, one)]
    assert stored == ["q4", "q4-static", "int8"]
    assert not [one.name for target in TARGETS for one in PRECISIONS if one.experts and target.allows(one.name)]

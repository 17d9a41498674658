"""Every precision of a bundle is proved before it is published; what float16 cannot hold is computed in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper, numpy_helper

import exporters.precision.protect
from exporters.copies import cast_copy
from exporters.graphs import graph_specs, source_modules
from exporters.lint import lint_bundle
from exporters.onnx import NOTES, VALUES, ExportRequest, export
from exporters.parity import Parity
from exporters.precision import NAMES, PRECISIONS, precision
from exporters.precision.floats import cast_graph_to_float32, cast_nodes_to_float32
from exporters.precision.protect import Protected, protect
from exporters.targets import TARGETS, target
from exporters.tensorrt.build import BuildRequest as Build
from exporters.tensorrt.build import build
from exporters.writing import export_graph
from tests.exporters.export_request import request
from tests.marks import needs_rtx
from tests.tiny import RECIPES, image, write_checkpoint
from vtc.artifact import staging_dir
from vtc.bundle.engines import Limits
from vtc.bundle.manifest import load_manifest
from vtc.cli import main
from vtc.errors import BundleError, InputError, ParityError, VtcError
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter
from vtc.resume import write_notes
from vtc.runtime.openvino.device import choose_device
from vtc.runtime.vlm import VLM
from vtc.staging import open_work

pytestmark = pytest.mark.xdist_group("precisions")  # bundles are made once for all tests here

QUANTISED = [one.name for one in PRECISIONS if one.stored]
BASES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
STORED = {"int8": TensorProto.INT8, "int4": TensorProto.INT4, "fp8": TensorProto.FLOAT8E4M3FN}


@pytest.fixture(scope="module")
def exported(adapter: VLMAdapter, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Parity], Path]:
    """All precisions but fp32 in one bundle."""
    wanted = request(adapter, *RECIPES["cls"], precisions=NAMES[1:])
    path = tmp_path_factory.mktemp("precisions") / "bundle"
    with open_work(path, "test") as work:
        work.claim(NOTES, "onnx/vision_encoder.onnx")
        (work.path / "onnx").mkdir()
        write_notes(work.path / NOTES, {"key": wanted.key, "graphs": {}})
        (work.path / "onnx/vision_encoder.onnx").write_bytes(b"of an interrupted export in fp32")
    return export(wanted, path), path


def test_bundle_holds_every_precision(exported: tuple[dict[str, Parity], Path]) -> None:
    parity, path = exported
    assert tuple(parity) == NAMES[1:]
    for one in PRECISIONS[1:]:
        found = parity[one.name]
        assert found.emulated == (one.base == "bf16")
        assert (found.original is not None) == (one.stored is not None and not one.activations)
        if one.activations:
            assert found.layers is not None
            assert found.layers < 1e-2
        else:
            assert found.logits_max_diff <= one.tolerance
        assert (path / f"onnx/vision_encoder{one.suffix}.onnx").is_file()
    assert not [file for file in path.rglob(".*") if file.is_file()]
    assert not (path / "onnx/vision_encoder.onnx").exists()
    assert {file.suffix for file in (path / "onnx").iterdir()} == {".onnx"}


def test_quantised_bundle_is_its_fake_quantised_model_and_not_quite_the_original(
    exported: tuple[dict[str, Parity], Path],
) -> None:
    parity, _ = exported
    for name in ("q8f16", "q4f16"):
        original = parity[name].original
        assert original is not None
        # What rounds weights is told apart from what float16 does to them.
        assert parity[name].logits_max_diff < 0.05 < original.logits_max_diff


@pytest.mark.parametrize("name", QUANTISED)
def test_linear_layers_are_stored_small(exported: tuple[dict[str, Parity], Path], name: str) -> None:
    _, path = exported
    one = precision(name)
    notes = json.loads((path / VALUES).read_text())[name]["graphs"]
    assert notes["embed_tokens"] == {"weights": int(one.head), "left": 0, "joined": 0}
    for graph in ("vision_encoder", "decoder_model_merged"):
        model = onnx.load(path / f"onnx/{graph}{one.suffix}.onnx")
        how = one.of_layer(vision=graph == "vision_encoder")
        small = [tensor for tensor in model.graph.initializer if tensor.data_type == STORED[str(how.stored)]]
        stored = [tensor for tensor in small if len(tensor.dims) == 2 and not tensor.name.endswith("/weight/numbers")]
        assert len(stored) == notes[graph]["weights"] - notes[graph]["joined"] > 6
        assert (notes[graph]["joined"] > 0) == (how.block > 0)
        rounded = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
        assert bool(rounded) == bool(how.activations)
    head = [tensor for tensor in model.graph.initializer if list(tensor.dims) in ([48, 460], [460, 48])]
    assert [tensor.data_type for tensor in head] == [STORED[str(one.stored)] if one.head else BASES[one.base]]
    rows = onnx.load(path / f"onnx/embed_tokens{one.suffix}.onnx").graph.initializer[0]
    assert rows.data_type == (TensorProto.INT8 if one.head else BASES[one.base])


@pytest.mark.parametrize("name", ["fp16", *QUANTISED])
def test_runtime_runs_every_precision(exported: tuple[dict[str, Parity], Path], adapter: VLMAdapter, name: str) -> None:
    _, path = exported
    model = VLM.load(path, precision=name)
    assert model.precision == name
    assert model.generate([[image(0)]], [adapter.chat("what is it ?")], 4)[0].token_ids


@pytest.mark.parametrize("form", ["ort", "opset23"])
def test_forms_of_what_rounds_in_the_vision_tower_alone(adapter: VLMAdapter, tmp_path: Path, form: str) -> None:
    name = f"q4-static-{form}"
    parity = export(request(adapter, *RECIPES["cls"], precisions=("q4-static",), optimised=(name,)), tmp_path / "b")
    assert parity[name].layers == parity["q4-static"].layers
    assert sorted(file.name for file in (tmp_path / "b" / "onnx").iterdir()) == sorted(
        f"{graph}_q4_static{suffix}.onnx"
        for graph in ("vision_encoder", "embed_tokens", "decoder_model_merged")
        for suffix in ("", f"_{form}")
        if (graph, suffix) != ("embed_tokens", f"_{form}")
    )
    asked = [[image(0)]], [adapter.chat("what is it ?")], [[5, 6, 7]]
    model, portable = VLM.load(tmp_path / "b", precision=name), VLM.load(tmp_path / "b", precision="q4-static-portable")
    assert model.run_as.startswith(name)
    wanted = portable.score(*asked)[0]
    assert np.abs(model.score(*asked)[0] - wanted).max() < 0.1 * np.abs(wanted).max()


def test_openvino_multiplies_integers_in_the_vision_tower(
    exported: tuple[dict[str, Parity], Path], adapter: VLMAdapter
) -> None:
    asked = [[image(0)]], [adapter.chat("what is it ?")], [[5, 6, 7]]
    wanted = VLM.load(exported[1], precision="q4-static").score(*asked)[0]
    model = VLM.load(exported[1], backend="openvino", precision="q4-static", threads=1)
    assert np.abs(model.score(*asked)[0] - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["q4", "int8"])
def test_openvino_runs_few_bits(exported: tuple[dict[str, Parity], Path], adapter: VLMAdapter, name: str) -> None:
    _, path = exported
    asked = [[]], [adapter.chat("what is it ?", 0)], [[5, 6, 7]]
    wanted = VLM.load(path, precision=name).score(*asked)[0]
    for precision_ in (name, *([f"{name}-bf16"] if choose_device().computes("bf16") else [])):
        model = VLM.load(path, backend="openvino", precision=precision_, threads=1)
        assert model.run_as == f"{precision_}, openvino CPU"
        assert np.abs(model.score(*asked)[0] - wanted).max() < 0.05 * np.abs(wanted).max()


def test_runtime_says_that_bfloat16_needs_a_gpu(exported: tuple[dict[str, Parity], Path]) -> None:
    with pytest.raises(BundleError, match="ONNX Runtime cannot load the graph"):
        VLM.load(exported[1], provider="cpu", precision="bf16")


@needs_rtx
@pytest.mark.parametrize("name", [name for name in NAMES[1:] if target("rtx").allows(name)])
def test_tensorrt_takes_every_precision(exported: tuple[dict[str, Parity], Path], tmp_path: Path, name: str) -> None:
    manifest, limits = load_manifest(exported[1]), Limits(text=48, new_tokens=16)
    built = build(Build(manifest, target("rtx"), name, ("8.9",), limits=limits), tmp_path / "engines")
    assert set(built.engines) == set(manifest.graphs)


@pytest.mark.parametrize("name", NAMES[1:])
def test_targets_take_what_they_allow(exported: tuple[dict[str, Parity], Path], name: str) -> None:
    manifest = load_manifest(exported[1])
    allowing = [one for one in TARGETS if one.allows(name)]
    for_gpus = name not in ("q4", "q4-static", "int8")
    assert ("rtx" in {one.name for one in allowing}) == for_gpus
    assert ("jetson-orin-jp6" in {one.name for one in allowing}) == (for_gpus and name != "fp8")
    for one in allowing:
        assert lint_bundle(manifest, name, one) == []


# Overflow -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> VLMAdapter:
    """A tiny model, one layer of which puts more into the residual stream than float16 holds."""
    adapter = load_adapter(write_checkpoint(tmp_path_factory.mktemp("loud") / "model"))
    layer: Any = adapter.decoder_layers[1]
    layer.mlp.down_proj.weight.data *= 1.2e5
    return adapter


def test_what_overflows_is_computed_in_float32(loud: VLMAdapter, tmp_path: Path) -> None:
    # The stream is cut after that layer, so what overflows goes through three graphs.
    wanted = request(loud, {"kind": "prune_in_decoder", "layer": 2, "keep": 5}, precisions=("fp16", "q8f16"))
    parity = export(wanted, tmp_path / "bundle")
    assert all(one.greedy_match == 1.0 for one in parity.values())
    notes = json.loads((tmp_path / "bundle" / VALUES).read_text())["fp16"]
    kept = notes["float32"]
    assert {row["graph"] for row in kept} == {"decoder_segment_0", "token_selector_1", "decoder_segment_1"}
    assert max(row["largest"] for row in kept) > 65504
    assert any("blocks.1.mlp" in row["module"] for row in kept)
    assert all(row["difference"] is not None for row in notes["values"])


@pytest.fixture(scope="module")
def loud_decoder(loud: VLMAdapter, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportRequest, Path]:
    """Its decoder in float16, as exported."""
    wanted = request(loud, precisions=("fp16",))
    path = tmp_path_factory.mktemp("loud") / "decoder_model_merged.onnx"
    loud.set_decoder_attention("grouped")
    export_graph(graph_specs(cast_copy(wanted.models, torch.float16), torch.float16)[-1], path)
    loud.set_decoder_attention("sdpa")
    return wanted, path


def protected(decoder: tuple[ExportRequest, Path]) -> Protected:
    wanted, path = decoder
    sources = source_modules(wanted.models)["decoder_model_merged"]
    return protect(onnx.load(path), "fp16", sources, wanted.samples, path.with_name("probe.onnx"))


def test_overflow_that_nobody_prevents_is_found(
    loud_decoder: tuple[ExportRequest, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert protected(loud_decoder).overflowing
    monkeypatch.setattr(exporters.precision.protect, "HEADROOM", 1e-9)
    with pytest.raises(ParityError, match=r"fp16 graphs overflow at .* more values; nothing was published"):
        protected(loud_decoder)


def test_cache_that_cannot_hold_its_keys_is_refused(
    loud_decoder: tuple[ExportRequest, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exporters.precision.protect.HIGHEST, "fp16", 1e-3)
    with pytest.raises(VtcError, match=r"present.0.key reaches .*, which a fp16 cache cannot hold; give --precision"):
        protected(loud_decoder)


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    adapter = load_adapter(write_checkpoint(tmp_path / "model"))
    layer: Any = adapter.decoder_layers[1]
    layer.mlp.down_proj.weight.data[0, 0] = 1e5
    with pytest.raises(VtcError, match=r"layers.1.mlp.down_proj.weight is beyond float16; give --precision bf16"):
        export(request(adapter, precisions=("fp16",)), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


# Types of values ------------------------------------------------------------------------------------------------------


def half_graph() -> ModelProto:
    """In float16, (x + x) * w - x."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["sum"]),
        helper.make_node("Mul", ["sum", "w"], ["product"]),
        helper.make_node("Sub", ["product", "x"], ["y"]),
    ]
    half = TensorProto.FLOAT16
    values = [helper.make_tensor_value_info(name, half, [2]) for name in ("sum", "product")]
    ends = [helper.make_tensor_value_info(name, half, [2]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.array([1e-3, 1e-3], np.float16), "w")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight], value_info=values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: ModelProto, x: list[float]) -> Any:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    dtype = np.float16 if "16" in session.get_inputs()[0].type else np.float32
    return session.run(None, {"x": np.array(x, dtype)})[0]


def rounding(model: ModelProto) -> ModelProto:
    """A graph that rounds as float16 does; ONNX Runtime computes what follows on each other in float32 on a CPU."""
    cast_graph_to_float32(model, TensorProto.FLOAT16, rounding=True)
    return model


def test_lifted_nodes_do_not_overflow() -> None:
    model, x = half_graph(), [60000.0, 1.0]
    assert np.isinf(run(rounding(half_graph()), x)[0])
    cast_nodes_to_float32(model, TensorProto.FLOAT16, {"sum", "product"})
    assert [node.op_type for node in model.graph.node].count("Cast") == 3  # x and w up, the product down
    assert run(model, x).dtype == np.float16
    np.testing.assert_allclose(run(rounding(model), x), [-59880, -0.998], rtol=2e-3)


def test_an_output_of_the_graph_keeps_its_type() -> None:
    model = half_graph()
    cast_nodes_to_float32(model, TensorProto.FLOAT16, {"sum", "product", "y"})
    assert run(model, [1.0, 2.0]).dtype == np.float16


def test_widened_graph_rounds_where_it_should() -> None:
    exact, x = half_graph(), [1.0, 0.1]
    cast_graph_to_float32(exact, TensorProto.FLOAT16)
    assert run(exact, x).dtype == np.float32
    values = np.array(x, np.float16)
    expected = (values + values) * np.float16(1e-3) - values  # numpy rounds after each step
    assert (run(exact, x) != expected.astype(np.float32)).any()
    np.testing.assert_array_equal(run(rounding(half_graph()), x), expected.astype(np.float32))


# Asking ---------------------------------------------------------------------------------------------------------------


def test_names_and_files_are_told_apart() -> None:
    assert len({one.suffix for one in PRECISIONS}) == len({one.name for one in PRECISIONS}) == len(PRECISIONS)
    with pytest.raises(InputError, match="precision 'fp12' is not known; precisions: fp32, fp16, bf16"):
        precision("fp12")


def test_help_lists_precisions_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    text = CliRunner().invoke(main, ["export", "--help"]).stdout
    assert all(one.summary in text for one in PRECISIONS)
    refused = CliRunner().invoke(main, ["export", "x", "-o", str(tmp_path / "b"), "--precision", "int3"])
    assert refused.exit_code == 2
    assert "int3" in refused.stderr


@pytest.mark.parametrize("name", ["int8-static", "q4-static"])
def test_ranges_are_not_taken_from_noise(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "r.yaml").write_text("version: 1\nname: none\nstages: []\n")
    made = ["compress", str(checkpoint), "--recipe", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "c")]
    assert CliRunner().invoke(main, made).exit_code == 0
    wanted = ["export", str(tmp_path / "c"), "-o", str(tmp_path / "b"), "--precision", name]
    result = CliRunner().invoke(main, wanted)
    assert result.exit_code == 2
    assert f"{name} takes ranges of activations from samples, and noise has none; give --data" in result.stderr
    assert not (tmp_path / "b").exists()
    assert not staging_dir(tmp_path / "b").exists()

"""What is not what it looks like stays as it is, and weights are left alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.external_data_helper import uses_external_data

from exporters.rewriting import Form, Rewritten, grouped, rewrite
from tests.exporters.rewriting.decoders import LAYERS, assert_alike


def changed(portable: Path, to: Path, kind: str, **attributes: str) -> ir.Model:
    """A copy of a graph in which a node of the only one of its kind is of another kind."""
    model = ir.load(portable)
    (node,) = (node for node in model.graph if node.op_type == kind)
    node.op_type = attributes["becomes"]
    ir.save(model, to)
    return ir.load(to)


def rewritten_alike(model: ir.Model, portable: Path, to: Path, form: Form = "ort") -> Rewritten:
    """Rewrite, and compare."""
    result = rewrite(model, form, "decoder_model_merged")
    ir.save(model, to)
    assert_alike(portable, to, in_place=result.in_place)
    return result


def test_a_mask_that_is_not_causal_is_taken_along(llava_decoder: Path, tmp_path: Path) -> None:
    portable = tmp_path / "portable.onnx"
    model = changed(llava_decoder, portable, "LessOrEqual", becomes="GreaterOrEqual")
    result = rewritten_alike(model, portable, tmp_path / "rewritten.onnx")
    assert result.fused["GroupQueryAttention"] == LAYERS
    assert not result.left
    attention = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert [node.attributes.get_int("causal") for node in attention] == [0] * LAYERS


def test_in_float16_it_stays(llava_decoder: Path, tmp_path: Path) -> None:
    model = changed(llava_decoder, tmp_path / "portable.onnx", "LessOrEqual", becomes="GreaterOrEqual")
    for value in (value for node in model.graph for value in node.outputs):
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = ir.DataType.FLOAT16
    result = rewrite(model, "ort", "decoder_model_merged")
    assert result.left[0] == "attention of layers 0, 1 stays portable: its mask is not that of causal attention"
    assert "GroupQueryAttention" not in result.fused
    assert not result.in_place


def test_attention_of_other_nodes_stays_with_that_of_all_layers(llava_decoder: Path, tmp_path: Path) -> None:
    portable = tmp_path / "portable.onnx"
    model = ir.load(llava_decoder)
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    between = ir.node("Identity", [softmax.inputs[0]])
    model.graph.insert_before(softmax, between)
    softmax.replace_input_with(0, between.outputs[0])
    ir.save(model, portable)
    result = rewritten_alike(model, portable, tmp_path / "rewritten.onnx")
    assert result.left == [
        "attention of layer 0 stays portable: its nodes are not those of the attention that is known",
        "attention of layer 1 stays portable: the layers of a graph share one layout of padding",
    ]
    model = ir.load(portable)
    result = rewritten_alike(model, portable, tmp_path / "standard.onnx", "opset23")
    assert result.fused["Attention"] == LAYERS - 1
    assert result.left[0].startswith("attention of layer 0 stays portable: its nodes")


def test_heads_of_odd_sizes_stay(llava_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "HEAD_MULTIPLE", 16)
    result = rewritten_alike(ir.load(llava_decoder), llava_decoder, tmp_path / "rewritten.onnx")
    assert result.left == ["attention of layers 0, 1 stays portable: a head has 24 numbers, no multiple of 16"]


def test_halves_turned_by_other_angles_stay(llava_decoder: Path, tmp_path: Path) -> None:
    portable = tmp_path / "portable.onnx"
    model = ir.load(llava_decoder)
    sine = next(node for node in model.graph if node.op_type == "Sin")
    angles = sine.inputs[0]
    assert angles is not None
    both = angles.producer()
    assert both is not None
    opposite = ir.node("Neg", [both.inputs[1]])
    model.graph.insert_before(both, opposite)
    both.replace_input_with(1, opposite.outputs[0])  # of which the cosine is the same
    ir.save(model, portable)
    result = rewritten_alike(ir.load(portable), portable, tmp_path / "rewritten.onnx")
    assert "RotaryEmbedding" not in result.fused
    assert result.fused["GroupQueryAttention"] == LAYERS


@pytest.mark.parametrize("form", ["ort", "opset23"])
def test_weights_stay_in_their_file(form: Form, llava_decoder: Path, tmp_path: Path) -> None:
    portable, data = tmp_path / "decoder.onnx", tmp_path / "decoder.onnx_data"
    ir.save(ir.load(llava_decoder), portable, external_data=data.name, size_threshold_bytes=1024)
    before = hashlib.sha256(data.read_bytes()).hexdigest()
    model = ir.load(portable)
    rewrite(model, form, "decoder_model_merged")
    ir.save(model, tmp_path / "rewritten.onnx")
    assert hashlib.sha256(data.read_bytes()).hexdigest() == before
    where = [
        {
            tensor.name: sorted((entry.key, entry.value) for entry in tensor.external_data)
            for tensor in onnx.load(path, load_external_data=False).graph.initializer
            if uses_external_data(tensor)
        }
        for path in (portable, tmp_path / "rewritten.onnx")
    ]
    assert where[0] == where[1] != {}
    assert_alike(portable, tmp_path / "rewritten.onnx", in_place=form == "ort")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("form", "kind"), [("ort", "SimplifiedLayerNormalization"), ("opset23", "RMSNormalization")])
def test_norms_are_fused_in_float32_between_casts_too(form: Form, kind: str, half: bool) -> None:
    proto = _norm(half)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    result = rewrite(model, form, "norm")
    assert result.fused == {kind: 1}
    assert result.nodes_after == 1 + len(proto.graph.node) - (6 + 2 * half + 1)
    generator = np.random.default_rng(0)
    of = np.float16 if half else np.float32
    feeds = {"x": generator.standard_normal((5, 8)).astype(of), "past_key_values.0": np.zeros(1, dtype=np.float32)}
    found = [
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for one in (proto, ir.to_proto(model))
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=2e-3 if half else 1e-6)


def test_norms_of_another_type_than_their_weight_are_named() -> None:
    proto = _norm(half=True)
    # What is normalised comes in float32 already, and goes out narrowed.
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    proto.graph.node[0].op_type = "Identity"
    del proto.graph.node[0].attribute[:]
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    result = rewrite(model, "ort", "norm")
    assert result.left == ["1 norms stay portable: what they take is of another type than their weight"]
    assert not result.fused


def _norm(half: bool) -> onnx.ModelProto:
    """An RMS norm, computed in float32 as its input is or between casts; and a cache, as decoders have."""
    make, types = onnx.helper, onnx.TensorProto
    narrow = types.FLOAT16 if half else types.FLOAT
    wide = "wide" if half else "x"
    normal = "narrow" if half else "normal"
    nodes = [make.make_node("Cast", ["x"], ["wide"], to=types.FLOAT)] if half else []
    nodes += [
        make.make_node("Pow", [wide, "two"], ["square"]),
        make.make_node("ReduceMean", ["square", "last"], ["mean"], keepdims=1),
        make.make_node("Add", ["mean", "epsilon"], ["some"]),
        make.make_node("Sqrt", ["some"], ["root"]),
        make.make_node("Reciprocal", ["root"], ["inverse"]),
        make.make_node("Mul", [wide, "inverse"], ["normal"]),
    ]
    nodes += [make.make_node("Cast", ["normal"], ["narrow"], to=narrow)] if half else []
    nodes += [
        make.make_node("Mul", ["weight", normal], ["y"]),
        make.make_node("Identity", ["past_key_values.0"], ["z"]),
    ]
    weight = np.random.default_rng(1).random(8).astype(np.float16 if half else np.float32)
    constants = {"two": np.float32(2), "last": np.array([-1]), "epsilon": np.float32(1e-3), "weight": weight}
    graph = make.make_graph(
        nodes,
        "norm",
        [
            make.make_tensor_value_info("x", narrow, ["B", 8]),
            make.make_tensor_value_info("past_key_values.0", types.FLOAT, [1]),
        ],
        [make.make_tensor_value_info("y", narrow, ["B", 8]), make.make_tensor_value_info("z", types.FLOAT, [1])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)

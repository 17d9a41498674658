"""Weights in few bits stand for what they should, in numpy and in ONNX Runtime, with scales that TensorRT takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from exporters.precision import PRECISIONS, Stored, precision
from exporters.precision.quantize import Linear, digest, linear_weights, multiplied, quantize
from exporters.precision.scales import CLIPS
from exporters.precision.small import Small, input_scale, small
from vtc.models.base import VLMAdapter

RNG = np.random.default_rng(0)
QUANTISED = [one.name for one in PRECISIONS if one.stored]
STEP = {"int8": 1 / 254, "int4": 1 / 7, "fp8": 1 / 16}
"""Half the distance of two numbers, as a share of the largest; int4's blocks may be clipped."""


STORED: tuple[Stored, ...] = ("int4", "int8")


def matrix(rows: int, columns: int, dtype: Any = np.float16) -> np.ndarray[Any, Any]:
    return RNG.standard_normal((rows, columns)).astype(dtype)


@pytest.mark.parametrize("outputs", [0, 1])
@pytest.mark.parametrize(
    ("stored", "block"), [("int8", 0), ("int8", 32), ("int4", 0), ("int4", 32), ("int4", 128), ("fp8", 0)]
)
def test_numbers_stand_for_the_weights(stored: Stored, block: int, outputs: int) -> None:
    weight = matrix(256, 128)
    found = small(weight, outputs, stored, block)
    assert found is not None
    assert found.values().shape == weight.shape
    assert (found.scales > 0).all()
    error = np.abs(found.values() - weight.astype(np.float32))
    assert error.max() <= STEP[stored] * np.abs(weight).max() * 1.8
    turned = small(np.ascontiguousarray(weight.T), 1 - outputs, stored, block)
    assert turned is not None
    np.testing.assert_array_equal(turned.values(), found.values().T)


@pytest.mark.parametrize("outputs", [0, 1])
def test_4_bits_of_either_sign_are_closer_and_8_bits_the_same(outputs: int) -> None:
    weight = matrix(256, 128, np.float32)
    found = {
        (stored, either): small(weight, outputs, stored, 32, either_sign=either)
        for stored in STORED
        for either in (False, True)
    }
    off = {how: float(((one.values() - weight) ** 2).sum()) for how, one in found.items() if one}
    assert off["int4", True] < 0.9 * off["int4", False]
    assert off["int8", True] == off["int8", False]
    assert (found["int4", True].numbers.astype(np.int8) == -8).any()  # type: ignore[union-attr]


@pytest.mark.parametrize(("inputs", "block"), [(256, 128), (192, 64), (96, 32), (48, 16), (40, 0)])
def test_blocks_divide_the_inputs(inputs: int, block: int) -> None:
    found = small(matrix(inputs, 8), 1, "int4", 128)
    assert (found.block if found else 0) == block
    if found:
        assert found.scales.shape == (inputs // block, 8)


def test_clipping_a_block_is_never_worse_than_its_largest_weight() -> None:
    weight = matrix(128, 64)
    weight[0] *= 6  # an outlier in each block
    found = small(weight, 1, "int4", 128, clips=CLIPS)
    assert found is not None
    plain = np.abs(weight.astype(np.float32)).max(axis=0) / 7
    rounded = np.rint(weight / plain) * plain
    assert ((found.values() - weight) ** 2).sum() < 0.95 * ((rounded - weight) ** 2).sum()


def test_weights_of_nothing_have_a_scale_above_zero() -> None:
    for stored in ("int8", "int4", "fp8"):
        found = small(np.zeros((128, 4), np.float16), 1, stored)
        assert found is not None
        assert (found.scales > 0).all()
        assert (found.values() == 0).all()


def graph(weight: np.ndarray[Any, Any], *, turned: bool, gemm: bool = False) -> ModelProto:
    """A product with a weight, which may be stored the other way round."""
    nodes, name = [], "weight"
    if turned:
        nodes.append(helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]))
        name = "turned"
    nodes.append(helper.make_node("Gemm" if gemm else "MatMul", ["x", name], ["y"]))
    stored = np.ascontiguousarray(weight.T) if turned else weight
    shape: list[Any] = ["n", weight.shape[0]] if gemm else ["b", "n", weight.shape[0]]
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [*shape[:-1], weight.shape[1]])],
        [numpy_helper.from_array(stored, "weight")],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0], np.float32)


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("gemm", [False, True])
def test_runtime_computes_with_the_rounded_weights(name: str, turned: bool, gemm: bool) -> None:
    how = precision(name)
    dtype = np.float16 if how.base == "fp16" else np.float32
    weight = matrix(256, 64, dtype)
    layer = Linear(("layer",), 0 if turned else 1)
    key = digest(np.ascontiguousarray(weight.T) if turned else weight)
    model, x = graph(weight, turned=turned, gemm=gemm), RNG.standard_normal((5, 256)).astype(dtype)
    x = x if gemm else x[None]
    reached = {"layer": float(np.abs(x).max())} if how.activations == "all" else {}
    assert how.stored is not None
    found = small(np.ascontiguousarray(weight.T), 0, how.stored, how.block)
    assert found is not None
    done = quantize(model, how, {key: layer}, {"layer": found}, reached, {})
    assert (done.weights, done.left) == (1, 0)
    assert model.opset_import[0].version == how.opset
    assert "Transpose" not in {node.op_type for node in model.graph.node}  # which ONNX Runtime joins no product over
    inputs = x.astype(np.float32)
    if reached:
        scale = input_scale(reached["layer"], how.stored)
        numbers = torch.from_numpy(inputs / scale)
        low = numbers.round() if how.stored == "int8" else numbers.to(torch.float8_e4m3fn).float()
        inputs = low.numpy() * scale
    np.testing.assert_allclose(run(model, x), inputs @ found.values().T, atol=0.05, rtol=2e-3)


def test_what_does_not_divide_is_left(adapter: VLMAdapter) -> None:
    weight = matrix(40, 8)
    model = graph(weight, turned=False)
    before = model.SerializeToString()
    assert small(weight, 1, "int4", 128) is None
    counts = quantize(model, precision("q4f16"), {digest(weight): Linear(("layer",), 1)}, {}, {}, {})
    assert (counts.weights, counts.left) == (0, 1)
    model.opset_import[0].version = 18
    assert model.SerializeToString() == before


def test_other_weights_are_not_touched() -> None:
    model = graph(matrix(64, 8), turned=False)
    assert multiplied(model, {"0" * 64: Linear(("layer",), 1)}) == {}


@pytest.mark.parametrize("block", [0, 16])
def test_embedding_is_looked_up_as_it_is_stored(block: int) -> None:
    rows = matrix(50, 48, np.float32) * np.logspace(-3, 3, 50, dtype=np.float32)[:, None]
    found = small(rows, 0, "int8", block)
    assert isinstance(found, Small)
    body = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "n", 48])],
        [numpy_helper.from_array(rows, "table")],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert quantize(model, precision("q4"), {}, {}, {}, {digest(rows): found}).weights == 1
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.arange(50).reshape(5, 10)
    np.testing.assert_array_equal(session.run(None, {"ids": ids})[0], found.values()[ids])
    assert len(model.SerializeToString()) < 0.5 * rows.nbytes
    assert (np.abs(found.values() - rows).max(axis=1) <= np.abs(rows).max(axis=1) / 253).all()


@pytest.mark.parametrize("head", [False, True])
def test_embedding_is_no_linear_layer_and_the_head_is_where_it_is_asked_for(
    adapter: VLMAdapter, siglip: VLMAdapter, head: bool
) -> None:
    for one in (adapter, siglip):  # the latter's head is its embedding
        names = {name for layer in linear_weights(one, torch.float16, head=head).values() for name in layer.names}
        assert any("vision_tower" in name for name in names)
        assert any("projector" in name for name in names)
        assert any("q_proj" in name and "language_model" in name for name in names)
        assert ("lm_head" in names) == head
        assert not any("embed" in name for name in names)


def test_scales_of_inputs_are_what_float16_holds() -> None:
    assert input_scale(0.0, "int8") > 0
    assert input_scale(12.7, "int8") == float(np.float16(0.1))


def test_graphs_with_weights_beside_them_are_read(tmp_path: Path) -> None:
    weight = matrix(64, 32)
    onnx.save(
        graph(weight, turned=False),
        tmp_path / "g.onnx",
        save_as_external_data=True,
        location="g.data",
        size_threshold=0,
    )
    light = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    assert list(multiplied(light, {digest(weight): Linear(("layer",), 1)}, tmp_path)) == ["weight"]

"""Products of one value with several weights are one, and give the same."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from exporters.precision.joined import join_products

RNG = np.random.default_rng(0)
KINDS: dict[str, Any] = {"int4": ml_dtypes.int4, "int8": np.int8}


class Layer:
    """A layer to be: what it multiplies, its outputs, the type of its numbers, its block, and whether it has a bias."""

    def __init__(self, value: str, outputs: int, kind: str = "int4", block: int = 32, *, bias: bool = False) -> None:
        self.value, self.outputs, self.kind, self.block, self.bias = value, outputs, kind, block, bias


def graph(*layers: Layer) -> ModelProto:
    """Products of values of 64, each of them a result named by its number."""
    nodes, tensors = [], []
    for number, layer in enumerate(layers):
        numbers = RNG.integers(-8, 8, (64, layer.outputs)).astype(KINDS[layer.kind])
        scales = RNG.standard_normal((64 // layer.block, layer.outputs)).astype(np.float32)
        tensors += [numpy_helper.from_array(numbers, f"n{number}"), numpy_helper.from_array(scales, f"s{number}")]
        made = helper.make_node(
            "DequantizeLinear", [f"n{number}", f"s{number}"], [f"w{number}"], axis=0, block_size=layer.block
        )
        result = f"p{number}" if layer.bias else str(number)
        nodes += [made, helper.make_node("MatMul", [layer.value, f"w{number}"], [result])]
        if layer.bias:
            bias = RNG.standard_normal(layer.outputs).astype(np.float32)
            tensors.append(numpy_helper.from_array(bias, f"b{number}"))
            nodes.append(
                helper.make_node("Add", [f"b{number}", result] if number % 2 else [result, f"b{number}"], [str(number)])
            )
    values = sorted({layer.value for layer in layers})
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3, 64]) for name in values]
    outputs = [
        helper.make_tensor_value_info(str(number), TensorProto.FLOAT, [None, 3, layer.outputs])
        for number, layer in enumerate(layers)
    ]
    # Results that nothing follows are given out, which products that are joined may not be.
    nodes += [helper.make_node("Identity", [one.name], [f"out{one.name}"]) for one in outputs]
    for one in outputs:
        one.name = f"out{one.name}"
    made_of = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(made_of, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def results(model: ModelProto) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feeds = {one.name: rng.standard_normal((2, 3, 64)).astype(np.float32) for one in session.get_inputs()}
    return list(session.run(None, feeds))


def count(model: ModelProto, kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph.node)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_products_of_a_value_become_one(kind: str, bias: bool) -> None:
    model = graph(
        *(Layer("x", width, kind, bias=bias) for width in (48, 16, 16)), Layer("y", 8, kind), Layer("y", 24, kind)
    )
    before = results(model)
    assert join_products(model) == 3
    assert count(model, "MatMul") == count(model, "DequantizeLinear") == 2
    assert count(model, "Add") == int(bias)
    assert len(model.graph.initializer) == 6 + int(bias)  # numbers, scales and widths of both, and biases
    for now, then in zip(results(model), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-5, atol=1e-4)
    assert join_products(model) == 0


@pytest.mark.parametrize(
    "other",
    [
        Layer("y", 16),
        Layer("x", 16, "int8"),
        Layer("x", 16, block=16),
        Layer("x", 16, bias=True),
    ],
    ids=["value", "type", "block", "bias"],
)
def test_what_is_not_alike_stays(other: Layer) -> None:
    model = graph(Layer("x", 16), other)
    nodes = list(model.graph.node)
    assert join_products(model) == 0
    assert list(model.graph.node) == nodes


def test_a_bias_that_others_use_is_copied() -> None:
    """Equal tensors are stored once: biases of zero are one for all layers."""
    model = graph(*(Layer("x", 16, bias=True) for _ in range(3)), Layer("y", 16, bias=True))
    for node in model.graph.node:
        if node.op_type == "Add":
            node.input[:] = ["b0" if name.startswith("b") else name for name in node.input]
    before = results(model)
    assert join_products(model) == 2
    assert count(model, "Add") == 2
    for now, then in zip(results(model), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-5, atol=1e-4)


def test_a_weight_of_two_products_stays() -> None:
    model = graph(Layer("x", 16), Layer("x", 16))
    model.graph.node.append(helper.make_node("MatMul", ["x", "w0"], ["again"]))
    assert join_products(model) == 0


def test_a_result_that_is_given_out_keeps_its_product() -> None:
    model = graph(Layer("x", 16), Layer("x", 16))
    model.graph.output.append(helper.make_tensor_value_info("0", TensorProto.FLOAT, [None, 3, 16]))
    before = results(model)
    join_products(model)
    for now, then in zip(results(model), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-5, atol=1e-4)

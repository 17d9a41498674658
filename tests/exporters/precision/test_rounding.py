"""Products of whole numbers: what they give, and that ONNX Runtime computes them as such."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from exporters.precision import precision
from exporters.precision.quantize import Linear, digest, quantize
from exporters.precision.small import input_scale, small
from vtc.runtime.onnxruntime.processor import has_vnni

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((64, 32)).astype(np.float32)
BIAS = RNG.standard_normal(32).astype(np.float32)
INTEGER_PRODUCTS = {"MatMulIntegerToFloat", "QGemm"}


def graph(kind: str, products: int = 1) -> ModelProto:
    """Products of two values (5, 64) with one weight: ``matmul``, with a ``bias`` after it, or a ``gemm`` of both."""
    nodes = []
    for number in range(products):
        x, y = f"x{number % 2}", f"y{number}"
        if kind == "gemm":
            nodes.append(helper.make_node("Gemm", [x, "w", "b"], [y]))
        else:
            nodes.append(helper.make_node("MatMul", [x, "w"], [f"p{number}" if kind == "bias" else y]))
        if kind == "bias":
            nodes.append(helper.make_node("Add", [f"p{number}", "b"], [y]))
    inputs, outputs = (
        [helper.make_tensor_value_info(f"{name}{number}", TensorProto.FLOAT, [5, width]) for number in range(count)]
        for name, width, count in (("x", 64, min(products, 2)), ("y", 32, products))
    )
    tensors = [numpy_helper.from_array(WEIGHT, "w")]
    tensors += [] if kind == "matmul" else [numpy_helper.from_array(BIAS, "b")]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("exact", ["0", "1"])
@pytest.mark.parametrize("products", [1, 2, 4])
@pytest.mark.parametrize("kind", ["matmul", "bias", "gemm"])
def test_integers_are_multiplied(kind: str, products: int, exact: str, tmp_path: Path) -> None:
    model = graph(kind, products)
    feeds = {f"x{number}": RNG.standard_normal((5, 64)).astype(np.float32) for number in range(min(products, 2))}
    most = float(max(np.abs(x).max() for x in feeds.values()))
    weight = small(np.ascontiguousarray(WEIGHT.T), 0, "int8")
    assert weight is not None
    linears = {digest(WEIGHT): Linear(("layer",), 1)}
    quantize(model, precision("q4-static"), linears, {"layer": weight}, {"layer": most}, {})
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", exact)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    scale = input_scale(most, "int8")
    for number, found in enumerate(session.run(None, feeds)):
        rounded = np.rint(feeds[f"x{number % 2}"] / scale).clip(-127, 127) * scale
        wanted = rounded @ weight.values().T + (0 if kind == "matmul" else BIAS)
        np.testing.assert_allclose(found, wanted, atol=2e-3)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert sum(kinds[kind] for kind in INTEGER_PRODUCTS) == products


def test_a_bias_that_integers_cannot_hold_stays() -> None:
    model = graph("bias")
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(BIAS * 1e9, "b"))
    weight = small(np.ascontiguousarray(WEIGHT.T), 0, "int8")
    assert weight is not None
    linears = {digest(WEIGHT): Linear(("layer",), 1)}
    quantize(model, precision("q4-static"), linears, {"layer": weight}, {"layer": 1.0}, {})
    assert "b" in {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [("fpu avx2 avx512_vnni", True), ("fpu avx2 avx_vnni x", True), ("fpu avx2", False), ("avx_vnni_int16", False)],
)
def test_processors_are_told_apart(tmp_path: Path, flags: str, wanted: bool) -> None:
    info: Any = tmp_path / flags.replace(" ", "-")
    info.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs :\n")
    assert has_vnni(info) == wanted
    assert not has_vnni(tmp_path / "nothing")

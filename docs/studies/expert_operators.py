"""ONNX Runtime's operators for a mixture of experts, by how weights are stored and what inputs are rounded to."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
Results = dict[str, dict[str, float]]
KINDS = {
    "`MoE`, float32": (0, 0, 0),
    "4 bits, blocks of 32, inputs as they are": (4, 32, 0),
    "4 bits, blocks of 32, inputs in 8 bits": (4, 32, 4),
    "8 bits, blocks of 32, inputs in 8 bits": (8, 32, 4),
    "8 bits, one scale a row, inputs as they are": (8, 0, 0),
}
"""Bits of a weight, inputs that share a scale, accuracy level."""
ROUNDS = 9


def operators(
    experts: int, active: int, width: int, inner: int, tokens: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """Milliseconds on one thread for so many `tokens`, and by how much of the largest output a kind is off.

    Outputs are compared with those of `MoE` on the matrices that the numbers stand for, and with those of the weights
    before they were rounded.
    """
    rng = np.random.default_rng(0)
    weights = [0.05 * _drawn(rng, experts, *sizes) for sizes in ((2 * inner, width), (width, inner))]
    feeds = {count: {"x": _drawn(rng, count, width), "scores": _drawn(rng, count, experts)} for count in tokens}
    results: Results = {}
    whole = _session(active, _floats(weights))
    for name, (bits, block, level) in KINDS.items():
        stored = [_rounded(one, bits, block) for one in weights] if bits else []
        few = {"expert_weight_bits": bits, "accuracy_level": level} | ({"block_size": block} if block else {})
        operator = _session(active, _numbers(stored, bits), **few) if bits else whole
        exact = _session(active, _floats([values for _, _, values in stored])) if bits else whole
        results[name] = {}
        for count, fed in feeds.items():
            found, took = _timed(operator, fed)
            results[name][f"{count}_ms"] = took
            results[name][f"{count}_off"] = _off(found, exact.run(None, fed)[0])
            results[name][f"{count}_from_fp32"] = _off(found, whole.run(None, fed)[0])
    return results


def _drawn(rng: np.random.Generator, *sizes: int) -> Floats:
    return rng.standard_normal(sizes, dtype=np.float32)


def _rounded(matrices: Floats, bits: int, block: int) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """Bytes, scales, and the matrices that they stand for; scales of 4 bits have either sign, as in exports."""
    zero, (count, rows, inputs) = 2 ** (bits - 1), matrices.shape
    blocks = matrices.reshape(count, rows, -1, block or inputs)
    top = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    scales = -top / zero if bits == 4 else np.abs(top) / (zero - 1)
    numbers = np.clip(np.rint(blocks / scales), -zero, zero - 1)
    unsigned = (numbers + zero).astype(np.uint8).reshape(matrices.shape)
    packed = unsigned[..., ::2] | unsigned[..., 1::2] << 4 if bits == 4 else unsigned
    return packed, scales[..., 0] if block else scales[..., 0, 0], (numbers * scales).reshape(matrices.shape)


def _floats(weights: list[Floats]) -> dict[str, Any]:
    return {"both": weights[0], "": None, "down": weights[1]}


def _numbers(stored: list[tuple[NDArray[np.uint8], Floats, Floats]], bits: int) -> dict[str, Any]:
    (both, scales, _), (down, others, _) = stored
    return {"both": both, "both_scales": scales, "": None, "down": down, "down_scales": others}


def _session(active: int, stored: dict[str, Any], **few: Any) -> Any:
    node: NodeProto = helper.make_node(
        "QMoE" if few else "MoE",
        ["x", "scores", *stored],
        ["y"],
        domain="com.microsoft",
        k=active,
        normalize_routing_weights=1,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        **few,
    )
    taken = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in ("x", "scores")]
    given = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in stored.items() if name]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "mixture", taken, given, tensors)
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _timed(session: Any, feeds: dict[str, Floats]) -> tuple[Floats, float]:
    found, took = session.run(None, feeds)[0], []
    for _ in range(ROUNDS):
        begin = perf_counter()
        session.run(None, feeds)
        took.append((perf_counter() - begin) * 1000)
    return found, median(took)


def _off(found: Floats, wanted: Floats) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())

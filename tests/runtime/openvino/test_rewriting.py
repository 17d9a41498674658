"""What a graph is changed in before OpenVINO compiles it, and that OpenVINO needs it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from vtc.runtime.openvino.device import choose_device
from vtc.runtime.openvino.graph import Graph

HEADS, KV_HEADS, WIDTH = 6, 2, 8
Array = np.ndarray[Any, Any]


def opened(path: Path, text: str, numbers: str = "f32", rounds: bool = False, **constants: Array) -> Graph:
    """A graph of ONNX's text form with constants, loaded."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    for names in (*(node.input for node in model.graph.node), *(node.output for node in model.graph.node)):
        names[:] = [dotted(name) for name in names]
    for port in (*model.graph.input, *model.graph.output):
        port.name = dotted(port.name)
    onnx.save(model, path / "graph.onnx")
    return Graph(path / "graph.onnx", "CPU", choose_device().properties(numbers, 1, rounds), (KV_HEADS, WIDTH))


def dotted(name: str) -> str:
    """ONNX's text form has no dots in names; a cache's names have."""
    for begin, whole in (("past_", "past_key_values.0."), ("present_", "present.0.")):
        name = whole + name.removeprefix(begin) if name in (f"{begin}key", f"{begin}value") else name
    return name


def kinds(graph: Graph) -> Counter[str]:
    """How often each kind of operator runs."""
    nodes = graph._compiled.get_runtime_model().get_ordered_ops()
    return Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)


def attention(capped: bool) -> str:
    """One layer's attention as exports write it, from queries, keys and values of new tokens."""
    cache = f"float[batch,{KV_HEADS},past,{WIDTH}]"
    grown = f"float[batch,{KV_HEADS},total,{WIDTH}]"
    cap, taken = ("capped = Tanh(scaled)", "capped") if capped else ("", "scaled")
    return f"""
    segment (float[batch,{HEADS},new,{WIDTH}] query, float[batch,{KV_HEADS},new,{WIDTH}] key,
        float[batch,{KV_HEADS},new,{WIDTH}] value, int64[batch,total] attention_mask,
        {cache} past_key, {cache} past_value)
        => (float[batch,{HEADS},new,{WIDTH}] mixed, {grown} present_key, {grown} present_value) {{
      present_key = Concat<axis = 2>(past_key, key)
      present_value = Concat<axis = 2>(past_value, value)
      seen = Cast<to: int = {TensorProto.FLOAT}>(attention_mask)
      hidden = Sub(seen, one)
      bias = Mul(hidden, far)
      bias5 = Unsqueeze(bias, middle)
      stacked = Reshape(query, stack)
      turned = Transpose<perm = [0, 1, 3, 2]>(present_key)
      scores = MatMul(stacked, turned)
      scaled = Mul(scores, scale)
      {cap}
      batch = Shape<start = 0, end = 1>(query)
      length = Shape<start = 2, end = 3>(query)
      heads = Concat<axis = 0>(batch, kv_heads, groups, length, rest)
      apart = Reshape({taken}, heads)
      biased = Add(apart, bias5)
      shares = Softmax<axis = -1>(biased)
      total = Shape<start = 1, end = 2>(attention_mask)
      rows = Concat<axis = 0>(batch, kv_heads, rest, total)
      together = Reshape(shares, rows)
      parts = MatMul(together, present_value)
      shape = Concat<axis = 0>(batch, query_heads, length, width)
      mixed = Reshape(parts, shape)
    }}"""


def attended(query: Array, key: Array, value: Array, mask: Array, capped: bool) -> Array:
    """The same in numpy: each new token sees all that the mask shows."""
    key, value = (np.repeat(rows, HEADS // KV_HEADS, axis=1) for rows in (key, value))
    scores = query @ key.swapaxes(2, 3) * WIDTH**-0.5
    scores = np.tanh(scores) if capped else scores
    scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True) @ value)


CONSTANTS = {
    "one": np.array(1, np.float32),
    "far": np.array(1e9, np.float32),
    "middle": np.array([1, 2, 3]),
    "scale": np.array(WIDTH**-0.5, np.float32),
    "stack": np.array([0, KV_HEADS, -1, WIDTH]),
    "kv_heads": np.array([KV_HEADS]),
    "query_heads": np.array([HEADS]),
    "groups": np.array([HEADS // KV_HEADS]),
    "rest": np.array([-1]),
    "width": np.array([WIDTH]),
}


@pytest.mark.parametrize("capped", [False, True], ids=["in one operator", "as it is"])
def test_attention_goes_on_from_the_state_of_its_request(tmp_path: Path, capped: bool) -> None:
    graph = opened(tmp_path, attention(capped), **CONSTANTS)
    assert graph.inputs.keys() == {"query", "key", "value", "attention_mask"}
    assert graph.outputs == ["mixed"]
    assert (graph.layers, graph.fused) == (1, int(not capped))
    # One operator holds the cache and grows it in place; otherwise it is concatenated anew.
    found = kinds(graph)
    assert (found["ScaledDotProductAttention"], found["Softmax"]) == ((0, 1) if capped else (1, 0))
    assert found["MemoryInput"] == found["MemoryOutput"] == 2
    rng = np.random.default_rng(0)
    requests = {rows: graph.take(rows) for rows in (2, 3)}
    pasts = {rows: [np.zeros((rows, KV_HEADS, 0, WIDTH), np.float32)] * 2 for rows in requests}
    masks = {rows: np.ones((rows, 0), np.int64) for rows in requests}
    for turn, new in enumerate((5, 1, 1, 3, 1)):
        for rows, request in requests.items():
            query = rng.standard_normal((rows, HEADS, new, WIDTH), dtype=np.float32)
            keys, values = rng.standard_normal((2, rows, KV_HEADS, new, WIDTH), dtype=np.float32)
            added = np.ones((rows, new), np.int64)
            added[0, : 2 * (turn == 0)] = 0  # padding, on the left
            masks[rows] = np.concatenate([masks[rows], added], axis=1)
            fresh = zip(pasts[rows], (keys, values), strict=True)
            pasts[rows] = [np.concatenate([before, after], axis=2) for before, after in fresh]
            feeds = {"query": query, "key": keys, "value": values, "attention_mask": masks[rows]}
            (mixed,) = graph.run_in(request, feeds)
            np.testing.assert_allclose(mixed.numpy(), attended(query, *pasts[rows], masks[rows], capped), atol=1e-5)
    for request in requests.values():
        graph.give_back(request)
    again = {"query": query, "key": keys, "value": values, "attention_mask": np.ones((3, 1), np.int64)}
    (mixed,) = graph.run_in(graph.take(3), again)  # of a request that was used before, perhaps for another batch
    np.testing.assert_allclose(mixed.numpy(), attended(query, keys, values, np.ones((3, 1)), capped), atol=1e-5)


@pytest.mark.parametrize("largest", [0, 1])
def test_of_equal_values_the_first_is_taken(tmp_path: Path, largest: int) -> None:
    text = f"""g (float[batch,64] x) => (int64[batch,16] places) {{
      values, places = TopK<axis = -1, largest = {largest}>(x, count)
    }}"""
    graph = opened(tmp_path, text, count=np.array([16]))
    for seed in range(5):
        x = np.random.default_rng(seed).integers(0, 4, (3, 64)).astype(np.float32)
        wanted = np.argsort(-x if largest else x, axis=-1, kind="stable")[:, :16]
        np.testing.assert_array_equal(graph.run({"x": x})[0].numpy(), wanted)


@pytest.mark.parametrize("left", [False, True])
def test_a_stack_of_matrices_is_multiplied_each(tmp_path: Path, left: bool) -> None:
    experts = np.random.default_rng(0).standard_normal((4, 8, 16) if left else (4, 16, 8), dtype=np.float32)
    x = np.random.default_rng(1).standard_normal((16, 5) if left else (5, 16), dtype=np.float32)
    taken, given = ("[16,tokens]", "[4,8,tokens]") if left else ("[tokens,16]", "[4,tokens,8]")
    product = "MatMul(experts, x)" if left else "MatMul(x, experts)"
    graph = opened(tmp_path, f"g (float{taken} x) => (float{given} y) {{ y = {product} }}", experts=experts)
    wanted = experts @ x if left else x @ experts
    np.testing.assert_allclose(graph.run({"x": x})[0].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_weights_of_few_bits_stay_so(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    most = {"int4": 7, "int8": 127}[kind]
    whole = rng.integers(-most, most + 1, (256, 64)).astype(ml_dtypes.int4 if kind == "int4" else np.int8)
    scales = rng.uniform(0.01, 0.1, (8, 64)).astype(np.float32)
    text = """g (float[rows,256] x) => (float[rows,64] y) {
      weights = DequantizeLinear<axis = 0, block_size = 32>(whole, scales)
      y = MatMul(x, weights)
    }"""
    x = rng.standard_normal((3, 256), dtype=np.float32)
    wanted = x @ (whole.astype(np.float32) * np.repeat(scales, 32, axis=0))
    errors = []
    for rounds in (False, True):
        graph = opened(tmp_path, text, rounds=rounds, whole=whole, scales=scales)
        nodes = graph._compiled.get_runtime_model().get_ordered_ops()
        product = next(n for n in nodes if n.get_rt_info()["layerType"].astype(str) == "FullyConnected")
        assert product.get_rt_info()["runtimePrecision"].astype(str) == f"i{kind[3:]}"
        errors.append(np.abs(graph.run({"x": x})[0].numpy() - wanted).max() / np.abs(wanted).max())
    assert errors[0] < 1e-5  # float32, unless a bundle lets activations be rounded
    assert errors[0] < errors[1] < 0.03

"""Graphs of the toy model, written by hand."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, parser

from tests.runtime.toy_model import Array, Toy


def _model(toy: Toy, text: str, constants: dict[str, Array]) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(model)
    return model


def vision_graph(toy: Toy) -> onnx.ModelProto:
    """Patches, a linear projection, and the `keep` highest of a linear score, in raster order."""
    side, patch, real = toy.grid, toy.patch, "float16" if toy.half else "float"
    text = f"""
    vision (float[batch_size,3,{toy.image_size},{toy.image_size}] pixel_values)
        => ({real}[batch_size,{toy.keep},{toy.width}] image_features,
            int64[batch_size,{toy.keep}] keep_indices) {{
      cast = Cast<to: int = {TensorProto.FLOAT16 if toy.half else TensorProto.FLOAT}>(pixel_values)
      blocks = Reshape(cast, shape6)
      turned = Transpose<perm = [0, 2, 4, 1, 3, 5]>(blocks)
      flat = Reshape(turned, shape3)
      features = MatMul(flat, patches)
      scores3 = MatMul(features, score)
      scores = Squeeze(scores3, last)
      values, best = TopK<axis = -1>(scores, keep)
      best_float = Cast<to: int = {TensorProto.FLOAT}>(best)
      sorted, order = TopK<axis = -1, largest = 0>(best_float, keep)
      keep_indices = Cast<to: int = {TensorProto.INT64}>(sorted)
      columns = Unsqueeze(keep_indices, last)
      spread = Expand(columns, width)
      image_features = GatherElements<axis = 1>(features, spread)
    }}"""
    constants = {
        "shape6": np.array([-1, 3, side, patch, side, patch]),
        "shape3": np.array([-1, side * side, 3 * patch * patch]),
        "last": np.array([-1]),
        "keep": np.array([toy.keep]),
        "width": np.array([1, 1, toy.width]),
    }
    return _model(toy, text, constants | {name: toy.weights[name] for name in ("patches", "score")})


def embed_graph(toy: Toy) -> onnx.ModelProto:
    """A lookup."""
    real = "float16" if toy.half else "float"
    text = f"""
    embed (int64[batch_size,sequence_length] input_ids) => ({real}[batch_size,sequence_length,{toy.width}]
    inputs_embeds) {{
      inputs_embeds = Gather(embedding, input_ids)
    }}"""
    return _model(toy, text, {"embedding": toy.weights["embedding"]})


def segment_graph(toy: Toy, number: int) -> onnx.ModelProto:
    """Attention and a tanh FFN for each layer, with the KV cache concatenated in the graph."""
    segment = toy.segments[number]
    real, code = ("float16", TensorProto.FLOAT16) if toy.half else ("float", TensorProto.FLOAT)
    first, last = number == 0, number == len(toy.segments) - 1
    source = "inputs_embeds" if first else "hidden_states"
    cache = f"{real}[batch_size,1,past_sequence_length,{toy.head_dim}]"
    grown = f"{real}[batch_size,1,total_sequence_length,{toy.head_dim}]"
    inputs = [
        f"{real}[batch_size,sequence_length,{toy.width}] {source}",
        "int64[batch_size,total_sequence_length] attention_mask",
        "int64[batch_size,sequence_length] position_ids",
    ]
    result = (
        f"{real}[batch_size,1,{toy.vocabulary}] logits"
        if last
        else f"{real}[batch_size,sequence_length,{toy.width}] out"
    )
    outputs = [result]
    lines = [
        "total = Shape<start = 1, end = 2>(attention_mask)",
        "length = Shape<start = 1, end = 2>(position_ids)",
        "total_scalar = Squeeze(total)",
        "length_scalar = Squeeze(length)",
        "start = Sub(total_scalar, length_scalar)",
        "keys = Range(zero, total_scalar, one)",
        "queries = Range(start, total_scalar, one)",
        "query_column = Unsqueeze(queries, last_axis)",
        "causal = LessOrEqual(keys, query_column)",
        "mask4 = Unsqueeze(attention_mask, middle_axes)",
        f"real_keys = Cast<to: int = {TensorProto.BOOL}>(mask4)",
        "allowed = And(causal, real_keys)",
        "bias = Where(allowed, nothing, minimum)",
        f"float_positions = Cast<to: int = {TensorProto.FLOAT}>(position_ids)",
        "position_column = Unsqueeze(float_positions, rotary_axes)",
        "angles = Mul(position_column, frequencies)",
        "cos_float = Cos(angles)",
        "sin_float = Sin(angles)",
        f"cos = Cast<to: int = {code}>(cos_float)",
        f"sin = Cast<to: int = {code}>(sin_float)",
    ]
    here = source
    for layer in segment.layers:
        inputs += [f"{cache} past_key_values.{layer}.key", f"{cache} past_key_values.{layer}.value"]
        outputs += [f"{grown} present.{layer}.key", f"{grown} present.{layer}.value"]
        there = "before_head" if layer == segment.layers[-1] else f"hidden{layer}"
        lines += _layer_lines(layer, here, there)
        here = there
    lines += ["last_row = Gather<axis = 1>(before_head, minus_one)", "logits = MatMul(last_row, head)"] if last else []
    lines += [] if last else ["out = Identity(before_head)"]
    body = "\n      ".join(lines)
    text = f"segment ({', '.join(inputs)}) => ({', '.join(outputs)}) {{\n      {body}\n    }}"
    text = text.replace("past_key_values.", "past_key_values_").replace("present.", "present_")
    text = text.replace(".key", "_key").replace(".value", "_value")
    dtype = np.float16 if toy.half else np.float32
    half = toy.head_dim // 2
    frequencies = 0.7 ** np.arange(half, dtype=np.float32)
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "minus_one": np.array([-1]),
        "last_axis": np.array([-1]),
        "middle_axes": np.array([1, 2]),
        "rotary_axes": np.array([1, 3]),
        "nothing": np.array(0, dtype=dtype),
        "minimum": np.array(-1e4, dtype=dtype),
        "scale": np.array(toy.head_dim**-0.5, dtype=dtype),
        "frequencies": np.concatenate([frequencies, frequencies]),
        "query_shape": np.array([0, 0, toy.heads, toy.head_dim]),
        "key_shape": np.array([0, 0, 1, toy.head_dim]),
        "inner_shape": np.array([0, 0, toy.heads * toy.head_dim]),
    }
    names = {f"{name}{layer}" for layer in segment.layers for name in ("q", "k", "v", "o", "up", "down")}
    names |= {"head"} if last else set()
    model = _model(toy, text, constants | {name: toy.weights[name] for name in sorted(names)})
    return _with_dots(model)


def _layer_lines(n: int, here: str, there: str) -> list[str]:
    def rotate(name: str) -> list[str]:
        return [
            f"{name}_a{n}, {name}_b{n} = Split<axis = -1, num_outputs = 2>({name}_heads{n})",
            f"{name}_minus{n} = Neg({name}_b{n})",
            f"{name}_turned{n} = Concat<axis = -1>({name}_minus{n}, {name}_a{n})",
            f"{name}_cos{n} = Mul({name}_heads{n}, cos)",
            f"{name}_sin{n} = Mul({name}_turned{n}, sin)",
            f"{name}_rotated{n} = Add({name}_cos{n}, {name}_sin{n})",
        ]

    lines = []
    for name, shape in (("q", "query_shape"), ("k", "key_shape"), ("v", "key_shape")):
        lines += [
            f"{name}_flat{n} = MatMul({here}, {name}{n})",
            f"{name}_split{n} = Reshape({name}_flat{n}, {shape})",
            f"{name}_heads{n} = Transpose<perm = [0, 2, 1, 3]>({name}_split{n})",
        ]
    return [
        *lines,
        *rotate("q"),
        *rotate("k"),
        f"present_{n}_key = Concat<axis = 2>(past_key_values_{n}_key, k_rotated{n})",
        f"present_{n}_value = Concat<axis = 2>(past_key_values_{n}_value, v_heads{n})",
        f"keys_turned{n} = Transpose<perm = [0, 1, 3, 2]>(present_{n}_key)",
        f"raw{n} = MatMul(q_rotated{n}, keys_turned{n})",
        f"scaled{n} = Mul(raw{n}, scale)",
        f"biased{n} = Add(scaled{n}, bias)",
        f"shares{n} = Softmax<axis = -1>(biased{n})",
        f"mixed{n} = MatMul(shares{n}, present_{n}_value)",
        f"mixed_turned{n} = Transpose<perm = [0, 2, 1, 3]>(mixed{n})",
        f"mixed_flat{n} = Reshape(mixed_turned{n}, inner_shape)",
        f"attended{n} = MatMul(mixed_flat{n}, o{n})",
        f"middle{n} = Add({here}, attended{n})",
        f"wide{n} = MatMul(middle{n}, up{n})",
        f"active{n} = Tanh(wide{n})",
        f"narrow{n} = MatMul(active{n}, down{n})",
        f"{there} = Add(middle{n}, narrow{n})",
    ]


def _with_dots(model: onnx.ModelProto) -> onnx.ModelProto:
    # ONNX's text form has no dots in names; the bundle's KV names have.
    def dotted(name: str) -> str:
        for prefix in ("past_key_values", "present"):
            if name.startswith(f"{prefix}_"):
                layer, _, part = name.removeprefix(f"{prefix}_").partition("_")
                return f"{prefix}.{layer}.{part}"
        return name

    for value in (*model.graph.input, *model.graph.output):
        value.name = dotted(value.name)
    for node in model.graph.node:
        node.input[:] = [dotted(name) for name in node.input]
        node.output[:] = [dotted(name) for name in node.output]
    onnx.checker.check_model(model)
    return model


def selector_graph(toy: Toy, *, merge: bool) -> onnx.ModelProto:
    """Rows `indices` of the hidden states, or of all and part of them laid end to end."""
    real = "float16" if toy.half else "float"
    full = f"{real}[batch_size,sequence_length,{toy.width}]"
    part = f"{real}[batch_size,kept_length,{toy.width}]"
    inputs = [f"{full} full_hidden_states", *([f"{part} part_hidden_states"] if merge else [])]
    inputs.append(f"int64[batch_size,{'sequence_length' if merge else 'kept_length'}] indices")
    first = (
        "both = Concat<axis = 1>(full_hidden_states, part_hidden_states)"
        if merge
        else "both = Identity(full_hidden_states)"
    )
    text = f"""
    selector ({", ".join(inputs)}) => ({full if merge else part} hidden_states) {{
      {first}
      columns = Unsqueeze(indices, last)
      spread = Expand(columns, width)
      hidden_states = GatherElements<axis = 1>(both, spread)
    }}"""
    return _model(toy, text, {"last": np.array([-1]), "width": np.array([1, 1, toy.width])})

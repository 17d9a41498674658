"""Finds the attention of a decoder's layers: what `vtc.models.parts.attention` writes, between cache and mask."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from exporters.rewriting.edit import commuted, number, permuted, producer, sizes

THROUGH = ("Reshape", "Cast")


@dataclass(frozen=True)
class Attention:
    """Attention of S new tokens after P cached ones, H query heads on Hkv key-value heads of size D.

    Attributes
    ----------
    layer : str
        Number of the layer, as the cache's name has it.
    query : ir.Value
        (B, H, S, D)
    key, value : ir.Value
        Of the new tokens, (B, Hkv, S, D).
    past : tuple of ir.Value
        Keys and values in the cache, (B, Hkv, P, D).
    present : tuple of ir.Value
        The same with the new tokens.
    mask : ir.Value
        Added to scores, (B, 1, S, P + S).
    scale, softcap : float
        0 is no soft cap.
    output : ir.Value
        (B, S, H * D)
    """

    layer: str
    query: ir.Value
    key: ir.Value
    value: ir.Value
    past: tuple[ir.Value, ir.Value]
    present: tuple[ir.Value, ir.Value]
    mask: ir.Value
    scale: float
    softcap: float
    output: ir.Value

    @property
    def heads(self) -> int:
        """Query heads."""
        return _number(sizes(self.output)[-1]) // self.size

    @property
    def kv_heads(self) -> int:
        """Key-value heads."""
        return _number(sizes(self.past[0])[1])

    @property
    def size(self) -> int:
        """Numbers of a head."""
        return _number(sizes(self.past[0])[3])


def find_attention(graph: ir.Graph) -> tuple[list[Attention], list[str]]:
    """All attention over a cache in a decoder's graph, and the layers whose attention is not understood."""
    found = [one for node in graph if node.op_type == "Softmax" if (one := _attention(node)) is not None]
    known = {one.layer for one in found}
    layers = [name.split(".")[1] for value in graph.inputs if (name := str(value.name)).endswith(".key")]
    return found, [layer for layer in layers if layer not in known]


def _number(size: int | ir.SymbolicDim) -> int:
    if not isinstance(size, int):
        raise AssertionError("sizes of heads are constants")
    return size


def through(value: ir.Value | None) -> ir.Value | None:
    """What a value is before it is laid out anew or its type is changed."""
    while (node := producer(value, *THROUGH)) is not None:
        value = node.inputs[0]
    return value


def _attention(softmax: ir.Node) -> Attention | None:
    product = product_after(softmax.outputs[0])
    addition = producer(through(softmax.inputs[0]), "Add")
    if product is None or addition is None or softmax.attributes.get_int("axis", -1) != -1:
        return None
    value = _cache(product.inputs[1])
    output = joined(product.outputs[0])
    if value is None or output is None:
        return None
    for scores, mask in commuted(addition):
        scored = _scores(scores)
        bias = _mask(mask)
        if scored is not None and bias is not None:
            query, (past_key, key, present_key), scale, softcap = scored
            past_value, new_value, present_value = value
            return Attention(
                layer=str(past_key.name).split(".")[1],
                query=query,
                key=key,
                value=new_value,
                past=(past_key, past_value),
                present=(present_key, present_value),
                mask=bias,
                scale=scale,
                softcap=softcap,
                output=output,
            )
    return None


def product_after(value: ir.Value) -> ir.Node | None:
    """The matrix product that a value alone goes into, as its first factor."""
    while len(users := value.consumers()) == 1:
        user = users[0]
        if user.op_type == "MatMul" and user.inputs[0] is value:
            return user
        if user.op_type not in THROUGH:
            return None
        value = user.outputs[0]
    return None


def _cache(present: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Past, new and present keys or values, where those are what a graph's cache holds."""
    node = producer(present, "Concat")
    if node is None or present is None or len(node.inputs) != 2 or node.attributes.get_int("axis") not in (2, -2):
        return None
    past, new = node.inputs
    if past is None or new is None or not past.is_graph_input() or not present.is_graph_output():
        return None
    return past, new, present


def _scores(
    value: ir.Value,
) -> tuple[ir.Value, tuple[ir.Value, ir.Value, ir.Value], float, float] | None:
    """Query, cached keys, scale and soft cap of scores."""
    inner, softcap = through(value), 0.0
    scale, inner = scaled(inner)
    capped = producer(inner, "Tanh")
    if capped is not None:
        # tanh(scores / cap) * cap
        softcap = scale
        scale, inner = scaled(through(capped.inputs[0]))
        scale *= softcap
    product = producer(inner, "MatMul")
    if product is None:
        return None
    query, keys = through(product.inputs[0]), permuted(product.inputs[1], 0, 1, 3, 2)
    cache = _cache(keys)
    if query is None or cache is None or len(sizes(query)) != 4:
        return None
    return query, cache, scale, softcap


def scaled(value: ir.Value | None) -> tuple[float, ir.Value | None]:
    """What a value is times, and divided by, constants."""
    scale = 1.0
    while (node := producer(value, "Mul", "Div")) is not None:
        pairs = commuted(node) if node.op_type == "Mul" else commuted(node)[:1]
        step = next(((rest, factor) for rest, one in pairs if (factor := number(one)) is not None), None)
        if step is None:
            break
        rest, factor = step
        scale = scale * factor if node.op_type == "Mul" else scale / factor
        value = through(rest)
    return scale, value


def _mask(value: ir.Value) -> ir.Value | None:
    """The mask (B, 1, S, T) of which scores (B, Hkv, G, S, T) are given one with an axis more."""
    node = producer(_cast(value), "Unsqueeze")
    bias = None if node is None else node.inputs[0]
    return bias if bias is not None and len(sizes(bias)) == 4 else None


def _cast(value: ir.Value) -> ir.Value | None:
    node = producer(value, "Cast")
    return value if node is None else node.inputs[0]


def joined(value: ir.Value) -> ir.Value | None:
    """What heads (B, H, S, D) laid end to end are, (B, S, H * D)."""
    kind = ""
    while (users := value.consumers()) and len(users) == 1 and users[0].op_type in ("Reshape", "Transpose"):
        before, kind = kind, users[0].op_type
        value = users[0].outputs[0]
        if kind == "Transpose" and permuted(value, 0, 2, 1, 3) is None:
            return None
        if kind == "Reshape" and before == "Transpose":
            return value if len(sizes(value)) == 3 else None
    return None

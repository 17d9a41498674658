"""Rotary embeddings: the halves of heads that are turned by angles become one node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter.pattern import Pattern

from exporters.rewriting.edit import CONTRIB, Editor, Size, constant, last, replace, sizes
from exporters.rewriting.evaluate import evaluate, sample_feeds

MASK = ((0, 0, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1))
"""On which angles are looked at: of 3 cached tokens and 4 new ones."""


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of a graph's positions, as a rotary operator takes them.

    Attributes
    ----------
    cos, sin : ir.Value
        Of operator set 23, (B, S, D / 2); of ONNX Runtime's, (B * S, D / 2), a row for each token.
    rows : ir.Value or None
        The row of each token, (B, S), which ONNX Runtime's takes for its position.
    """

    cos: ir.Value
    sin: ir.Value
    rows: ir.Value | None


def _rotated(op: Any, x: Any, cos: Any, sin: Any, zero: Any, half: Any, end: Any, axis: Any, step: Any) -> Any:
    first, second = op.Slice(x, zero, half, axis, step), op.Slice(x, half, end, axis, step)
    return op.Add(op.Mul(x, cos), op.Mul(op.Concat(op.Neg(second), first, axis=-1), sin))


def fuse_rotary(model: ir.Model, contrib: bool) -> None:
    """Replace rotations of whole heads (B, H, S, D) by one node each.

    Cosines and sines are computed from the positions in the graph, as before. So positions may have gaps, be on three
    axes or lie beyond any table.

    Parameters
    ----------
    model : ir.Model
    contrib : bool
        Whether to use ONNX Runtime's operator, or that of operator set 23.
    """
    graph = model.graph
    match = Pattern(_rotated)
    known: dict[tuple[ir.Value, ir.Value], Angles | None] = {}
    for node in list(graph):
        found = match.match(model, graph, node) if node.op_type == "Add" else None
        if not found:
            continue
        x, cos, sin, *window = (found.bindings[name] for name in ("x", "cos", "sin", *_WINDOW))
        width, outer = last(x), (_per_token(cos), _per_token(sin))
        if width is None or len(sizes(x)) != 4 or not _halves(window, width) or outer[0] is None or outer[1] is None:
            continue
        pair = (outer[0], outer[1])
        if pair not in known:
            known[pair] = _angles(Editor(graph, node), pair, width, contrib) if _equal_halves(graph, pair) else None
        angles = known[pair]
        if angles is None:
            continue
        editor = Editor(graph, node)
        turned = rotate(editor, x, angles, heads=None)
        replace(graph, {node.outputs[0]: turned})
        graph.remove(node, safe=True)


def rotate(editor: Editor, x: ir.Value, angles: Angles, heads: int | None) -> ir.Value:
    """Put in a rotation.

    Parameters
    ----------
    editor : Editor
    x : ir.Value
        (B, H, S, D), or (B, S, H * D) with the number of `heads`.
    angles : Angles
    heads : int or None
    """
    if angles.rows is None:
        told: dict[str, Any] = {} if heads is None else {"num_heads": heads}
        return editor.add("RotaryEmbedding", x, angles.cos, angles.sin, like=x, **told)
    # ONNX Runtime's takes the number of heads only beside the size of a part to rotate; the angles tell it.
    return editor.add("RotaryEmbedding", x, angles.rows, angles.cos, angles.sin, like=x, domain=CONTRIB)


@dataclass(frozen=True)
class PackedAngles:
    """Angles of heads of queries, keys and values that lie end to end in one row for each token.

    Attributes
    ----------
    cos, sin : ir.Value
        A row for each token, (B * S + N, D / 2), then rows that turn nothing.
    rows : ir.Value
        The row of each of a token's N heads, (B * S, N). Values are not turned.
    tokens : ir.Value
        The shape of such rows, (B, S, N * D).
    outer : tuple of Size
        Their B and S.
    """

    cos: ir.Value
    sin: ir.Value
    rows: ir.Value
    tokens: ir.Value
    outer: tuple[Size, ...]


def packed_angles(editor: Editor, angles: Angles, turned: int, heads: int) -> PackedAngles:
    """Angles of packed heads, of ONNX Runtime's operator.

    Parameters
    ----------
    editor : Editor
    angles : Angles
        Of ONNX Runtime's operator.
    turned, heads : int
        Of the N = `heads` of a token the first `turned` are queries and keys.
    """
    if angles.rows is None:
        raise AssertionError("the standard operator's angles are not of rows")
    half = last(angles.cos)
    if half is None or angles.cos.dtype is None:
        raise AssertionError("types and sizes of heads are known")
    kind = angles.cos.dtype
    integer = ir.DataType.INT64
    tables = []
    for table, still in ((angles.cos, 1), (angles.sin, 0)):
        # The operator asks for as many rows as a sequence has tokens, and here heads are its tokens.
        value, shape = editor.constant(still, kind.numpy()), editor.constant([heads, half])
        rest = editor.add("Expand", value, shape, shape=(heads, half), dtype=kind)
        tables.append(editor.add("Concat", table, rest, axis=0, shape=("rows", half), dtype=kind))
    count = editor.add("Shape", angles.cos, start=0, end=1, shape=(1,), dtype=integer)
    places = editor.add("Reshape", angles.rows, editor.constant([-1, 1]), shape=("tokens", 1), dtype=integer)
    values = editor.constant([[place >= turned for place in range(heads)]], np.bool_)
    rows = editor.add("Where", values, count, places, shape=("tokens", heads), dtype=integer)
    outer = editor.add("Shape", angles.rows, shape=(2,), dtype=integer)
    tokens = editor.add("Concat", outer, editor.constant([heads * 2 * half]), axis=0, shape=(3,), dtype=integer)
    return PackedAngles(tables[0], tables[1], rows, tokens, sizes(angles.rows))


def rotate_packed(editor: Editor, x: ir.Value, angles: PackedAngles) -> ir.Value:
    """Put in a rotation of packed queries, keys and values (B, S, N * D)."""
    heads, half = last(angles.rows), last(angles.cos)
    if heads is None or half is None:
        raise AssertionError("sizes of heads are constants")
    kind, flat = angles.cos.dtype, heads * 2 * half
    apart = editor.constant([-1, heads, 2 * half])
    one = editor.add("Reshape", x, apart, shape=("tokens", heads, 2 * half), dtype=kind)
    turned = editor.add("RotaryEmbedding", one, angles.rows, angles.cos, angles.sin, like=one, domain=CONTRIB)
    return editor.add("Reshape", turned, angles.tokens, shape=(*angles.outer, flat), dtype=kind)


def angles_of(node: ir.Node) -> Angles:
    """The angles that a rotation which was put in reads."""
    if node.domain == CONTRIB:
        rows, cos, sin = node.inputs[1:4]
    else:
        (cos, sin), rows = node.inputs[1:3], None
    if cos is None or sin is None:
        raise AssertionError("a rotation reads its angles")
    return Angles(cos, sin, rows)


_WINDOW = ("zero", "half", "end", "axis", "step")


def _halves(window: list[ir.Value], width: int) -> bool:
    """Whether slices are the first and the second half of the last of four axes."""
    values = [constant(value) for value in window]
    if any(value is None or value.size != 1 for value in values):
        return False
    zero, half, end, axis, step = (int(value.reshape(-1)[0]) for value in values if value is not None)
    return zero == 0 and 2 * half == width and end >= width and axis in (3, -1) and step == 1


def _per_token(value: ir.Value) -> ir.Value | None:
    """Angles (B, S, D) that were given an axis for the heads."""
    node = value.producer()
    if node is None or node.op_type != "Unsqueeze" or node.inputs[0] is None or len(sizes(node.inputs[0])) != 3:
        return None
    axes = constant(node.inputs[1])
    return node.inputs[0] if axes is not None and axes.tolist() == [1] else None


def _equal_halves(graph: ir.Graph, pair: tuple[ir.Value, ir.Value]) -> bool:
    """Whether both halves of a head are turned by the same angles, on random positions: the operators know no other."""
    for values in evaluate(graph, pair, sample_feeds(graph, 3, 4, MASK)):
        first, second = np.split(values, 2, axis=-1)
        if not np.array_equal(first, second):
            return False
    return True


def _angles(editor: Editor, pair: tuple[ir.Value, ir.Value], width: int, contrib: bool) -> Angles:
    """Halve angles, before the first rotation that reads them."""
    batch, length = sizes(pair[0])[:2]
    bounds = [editor.constant([bound]) for bound in (0, width // 2, -1, 1)]
    halves = [
        editor.add("Slice", value, *bounds, shape=(batch, length, width // 2), dtype=value.dtype) for value in pair
    ]
    if not contrib:
        return Angles(halves[0], halves[1], None)
    flat = editor.constant([-1, width // 2])
    tables = [editor.add("Reshape", half, flat, shape=("tokens", width // 2), dtype=half.dtype) for half in halves]
    integer = ir.DataType.INT64
    size = editor.add("Shape", halves[0], start=0, end=2, shape=(2,), dtype=integer)
    count = editor.add("Shape", tables[0], start=0, end=1, shape=(1,), dtype=integer)
    tokens = editor.add("Squeeze", count, editor.constant([0]), shape=(), dtype=integer)
    rows = editor.add("Range", editor.constant(0), tokens, editor.constant(1), shape=("tokens",), dtype=integer)
    places = editor.add("Reshape", rows, size, shape=(batch, length), dtype=integer)
    return Angles(tables[0], tables[1], places)

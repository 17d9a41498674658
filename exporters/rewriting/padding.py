"""Padding on the right inside a graph whose rows are padded on the left.

ONNX Runtime's attention over a cache in place wants the tokens of a row from the first place on. So each row's new
tokens are rolled to the left as they come in, and back where hidden states leave. Rows without padding, and a single
new token, stay as they are. The cache is padded on the right from the first token on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from exporters.rewriting.edit import Editor, constant, replace, sizes
from vtc.runtime.decoder import ROWS

INTEGER = ir.DataType.INT64


@dataclass(frozen=True)
class Lengths:
    """Of the rows of a batch.

    Attributes
    ----------
    last : ir.Value
        Place of each row's last token, cached ones counted, (B,), int32.
    total : ir.Value
        Length of the longest row with its padding, a scalar, int32.
    new, keys : ir.Value
        For each place among the new tokens (B, S), and among all tokens (B, P + S), where its token came from.
    """

    last: ir.Value
    total: ir.Value
    new: ir.Value
    keys: ir.Value


def last_only(graph: ir.Graph) -> ir.Node | None:
    """The node that takes each row's last hidden state (B, 1, E), where only its logits are computed."""
    for node in graph:
        if node.op_type != "Slice" or len(node.inputs) < 4 or len(sizes(node.outputs[0])) != 3:
            continue
        start, axes = constant(node.inputs[1]), constant(node.inputs[3])
        if start is not None and axes is not None and start.tolist() == [-1] and axes.tolist() == [1]:
            return node
    return None


def pad_right(graph: ir.Graph) -> Lengths:
    """Roll what comes in and what leaves, and give the lengths.

    Parameters
    ----------
    graph : ir.Graph
        Of a decoder segment, whose outputs are its cache, hidden states (B, S, E), or the logits of the last tokens, of
        which :func:`last_only` finds the hidden states.
    """
    inputs = {str(value.name): value for value in graph.inputs}
    hidden, mask, positions = graph.inputs[0], inputs["attention_mask"], inputs["position_ids"]
    final = last_only(graph)
    leaving = {value: value.producer() for value in graph.outputs if _is_hidden(value)}
    editor = Editor(graph, graph[0])
    batch, length = sizes(hidden)[:2]

    one, zero, end = editor.constant([1]), editor.constant([0]), editor.constant([2**63 - 1])
    real = editor.add("ReduceSum", mask, one, keepdims=0, shape=(batch,), dtype=INTEGER)
    some = editor.add("Max", real, one, like=real)  # of a row that is all padding, nobody reads anything
    last = editor.add("Sub", some, one, like=real)
    total = editor.add("Shape", mask, start=1, end=2, shape=(1,), dtype=INTEGER)
    scalar = editor.add("Squeeze", total, zero, shape=(), dtype=INTEGER)
    narrow = ir.DataType.INT32
    places_last = editor.add("Cast", last, to=narrow, shape=(batch,), dtype=narrow)
    places_all = editor.add("Cast", scalar, to=narrow, shape=(), dtype=narrow)

    new = editor.add("Shape", hidden, start=1, end=2, shape=(1,), dtype=INTEGER)
    first = editor.add("Sub", total, new, shape=(1,), dtype=INTEGER)
    fresh = editor.add("Slice", mask, first, end, one, shape=(batch, length), dtype=INTEGER)
    tokens = editor.add("ReduceSum", fresh, one, keepdims=1, shape=(batch, 1), dtype=INTEGER)
    shift = editor.add("Sub", new, tokens, shape=(batch, 1), dtype=INTEGER)
    count = editor.add("Squeeze", new, zero, shape=(), dtype=INTEGER)
    places = editor.add("Range", editor.constant(0), count, editor.constant(1), shape=(length,), dtype=INTEGER)
    there = _modulo(editor, editor.add("Add", places, shift, shape=(batch, length), dtype=INTEGER), new)
    back = _modulo(editor, editor.add("Sub", places, shift, shape=(batch, length), dtype=INTEGER), new)

    all_places = editor.add(
        "Range", editor.constant(0), scalar, editor.constant(1), shape=sizes(mask)[1:], dtype=INTEGER
    )
    padding = editor.add("Unsqueeze", editor.add("Sub", total, real, like=real), one, shape=(batch, 1), dtype=INTEGER)
    keys = _modulo(editor, editor.add("Add", all_places, padding, like=mask), total)
    lengths = Lengths(places_last, places_all, there, keys)

    rows = [inputs[name] for name in ROWS if name in inputs]
    own = {user for one in (mask, hidden, positions, *rows) for user, _ in one.uses()}
    rolled = _take(editor, hidden, there)
    turned = _take_positions(editor, positions, there)
    replaced = [(hidden, rolled), (positions, turned)]
    if rows:
        replaced += zip(rows, _roll_rows(editor, rows, new, there, back), strict=True)
    for old, value in replaced:
        for user, place in tuple(old.uses()):
            if user in own and user is not value.producer() and user.op_type != "Shape":
                user.replace_input_with(place, value)
    if final is not None:
        editor.before = final
        # A row that is all padding is read at its first place.
        least = editor.add("Max", tokens, one, like=tokens)
        index = editor.add("Sub", least, one, like=tokens)
        source = final.inputs[0]
        if source is None:
            raise AssertionError("a slice has an input")
        replace(graph, {final.outputs[0]: _take(editor, source, index, like=final.outputs[0])})
        graph.remove(final, safe=True)
    for value, node in leaving.items():
        if node is None or value in graph.inputs:
            continue
        _roll_back(graph, value, back)
    return lengths


def roll_mask(editor: Editor, mask: ir.Value, lengths: Lengths) -> ir.Value:
    """A mask (B, 1, S, T) of rows padded on the left, for the same rows padded on the right."""
    batch, _, new, total = sizes(mask)
    flat = editor.add("Squeeze", mask, editor.constant([1]), shape=(batch, new, total), dtype=mask.dtype)
    rows = _take(editor, flat, lengths.new)
    shape = editor.add("Shape", rows, shape=(3,), dtype=INTEGER)
    keys = editor.add("Unsqueeze", lengths.keys, editor.constant([1]), shape=(batch, 1, total), dtype=INTEGER)
    keys = editor.add("Expand", keys, shape, shape=(batch, new, total), dtype=INTEGER)
    rolled = editor.add("GatherElements", rows, keys, axis=2, like=rows)
    return editor.add("Unsqueeze", rolled, editor.constant([1]), like=mask)


def _is_hidden(value: ir.Value) -> bool:
    """Whether an output of a segment is hidden states, a row of them for each token."""
    name = str(value.name)
    return not name.startswith("present.") and name != "logits"


def _modulo(editor: Editor, value: ir.Value, by: ir.Value) -> ir.Value:
    return editor.add("Mod", value, by, like=value)


def _take(editor: Editor, values: ir.Value, places: ir.Value, like: ir.Value | None = None) -> ir.Value:
    """Of values (B, S, E) those at places (B, T) of each row."""
    indices = editor.add("Unsqueeze", places, editor.constant([2]), shape=(*sizes(places), 1), dtype=INTEGER)
    return editor.add("GatherND", values, indices, batch_dims=1, like=values if like is None else like)


def _roll_rows(
    editor: Editor, given: Sequence[ir.Value], new: ir.Value, there: ir.Value, back: ir.Value
) -> list[ir.Value]:
    """Which tokens are text and which are visual, for the same rows rolled."""
    text, visual, order = given
    batch, length = sizes(order)
    rows = editor.add("Shape", order, start=0, end=1, shape=(1,), dtype=INTEGER)
    count = editor.add("Squeeze", rows, editor.constant([0]), shape=(), dtype=INTEGER)
    each = editor.add("Range", editor.constant(0), count, editor.constant(1), shape=(batch,), dtype=INTEGER)
    before = editor.add("Mul", each, new, shape=(batch,), dtype=INTEGER)  # tokens of earlier rows
    before = editor.add("Unsqueeze", before, editor.constant([1]), shape=(batch, 1), dtype=INTEGER)
    places = editor.add("Add", before, back, shape=(batch, length), dtype=INTEGER)
    places = editor.add("Reshape", places, editor.constant([-1]), shape=("token_count",), dtype=INTEGER)
    found = [editor.add("Gather", places, one, axis=0, like=one) for one in (text, visual)]
    return [*found, editor.add("GatherElements", order, there, axis=-1, like=order)]


def _take_positions(editor: Editor, positions: ir.Value, places: ir.Value) -> ir.Value:
    """Of positions (B, S) or (3, B, S) those at places (B, S) of each row."""
    if len(sizes(positions)) == 3:
        shape = editor.add("Shape", positions, shape=(3,), dtype=INTEGER)
        places = editor.add("Expand", places, shape, like=positions)
    return editor.add("GatherElements", positions, places, axis=-1, like=positions)


def _roll_back(graph: ir.Graph, value: ir.Value, places: ir.Value) -> None:
    """Give a value out as it would be with padding on the left; what reads it inside goes on reading it as it is."""
    node = value.producer()
    if node is None:
        raise AssertionError("outputs are computed")
    following = ir.Node("", "Identity", [value])
    graph.append(following)
    editor = Editor(graph, following)
    rolled = _take(editor, value, places)
    graph.remove(following)
    name = value.name
    for number, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[number] = rolled
    value.name, rolled.name = f"{name}/right", name

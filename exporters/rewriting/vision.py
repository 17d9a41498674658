"""A vision tower's attention as one node.

Norms with the residual additions before them stay apart: on a CPU, SkipLayerNormalization took more time than the two.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.rewriting.attention import joined, product_after, scaled, through
from exporters.rewriting.edit import CONTRIB, Editor, permuted, producer, replace, sizes
from exporters.rewriting.grouped import laid_out
from exporters.rewriting.report import Form


def fuse_heads(graph: ir.Graph, form: Form) -> list[str]:
    """Let attention of all tokens to all tokens be one node, and say what stays.

    A selector's own rows of attention are computed apart, and stay.

    Parameters
    ----------
    graph : ir.Graph
    form : {"ort", "opset23"}
        Of `ort` the node is MultiHeadAttention, of `opset23` Attention.
    """
    left = 0
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        product = product_after(softmax.outputs[0])
        scores = producer(through(softmax.inputs[0]), "MatMul")
        if product is None:
            continue  # rows of attention that a selector ranks tokens by
        output = joined(product.outputs[0])
        heads = None if scores is None else _heads(scores, product.inputs[1])
        if output is None or heads is None:
            left += 1
            continue
        query, key, value, scale = heads
        number = sizes(query)[1]
        final = output.producer()
        if not isinstance(number, int) or final is None:
            raise AssertionError("sizes of heads are constants, and an output is computed")
        editor = Editor(graph, final)
        inputs = [laid_out(editor, one) for one in (query, key, value)]
        if form == "ort":
            fused = editor.add(
                "MultiHeadAttention", *inputs, like=output, domain=CONTRIB, num_heads=number, scale=scale
            )
        else:
            fused = editor.add(
                "Attention",
                *inputs,
                like=output,
                q_num_heads=number,
                kv_num_heads=number,
                scale=scale,
                softmax_precision=ir.DataType.FLOAT.value,
            )
        replace(graph, {output: fused})
    return [f"attention stays portable in {left} places: it has a mask or windows"] if left else []


def _heads(scores: ir.Node, value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value, float] | None:
    """Query, key and value, each (B, H, N, D), and the scale."""
    first, query = scaled(through(scores.inputs[0]))
    second, turned = scaled(through(scores.inputs[1]))
    key = _keys(turned)
    if query is None or key is None or value is None:
        return None
    shapes = [sizes(one) for one in (query, key, value)]
    fit = all(len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[3], int) for shape in shapes)
    return (query, key, value, first * second) if fit and shapes[0] == shapes[1] == shapes[2] else None


def _keys(turned: ir.Value | None) -> ir.Value | None:
    """Keys (B, H, N, D) of which the last two axes change places, at once or by way of three axes."""
    straight = permuted(turned, 0, 1, 3, 2)
    if straight is not None:
        return straight
    apart = permuted(through(turned), 0, 2, 1)
    return None if apart is None else through(apart)

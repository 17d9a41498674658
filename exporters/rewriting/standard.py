"""Form `opset23`: ONNX's own attention, norm and rotation, the cache growing and the mask as it is."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from exporters.rewriting.attention import Attention
from exporters.rewriting.edit import Editor, opset, replace
from exporters.rewriting.grouped import laid_out, layers

OPSET = 23
REDEFINED = {"GroupNormalization"}
"""Operators that mean something else in operator set 21 or later than in 20."""


def raise_opset(model: ir.Model) -> str:
    """Let a graph be of operator set 23; empty, or why it stays of its own."""
    other = sorted({node.op_type for node in model.graph if node.domain == "" and node.op_type in REDEFINED})
    if other and opset(model.graph) < OPSET:
        return f"the graph stays of operator set {opset(model.graph)}: {', '.join(other)} means something else later"
    model.opset_imports[""] = max(OPSET, opset(model.graph))
    return ""


def attend(graph: ir.Graph, found: Sequence[Attention], unknown: Sequence[str]) -> list[str]:
    """Replace attention by ONNX's operator, and say what stays."""
    for one in found:
        final = one.output.producer()
        if final is None:
            raise AssertionError("an output is computed")
        editor = Editor(graph, final)
        output, *present = editor.add_all(
            "Attention",
            *(laid_out(editor, value) for value in (one.query, one.key, one.value)),
            one.mask,
            *one.past,
            likes=[one.output, *one.present],
            q_num_heads=one.heads,
            kv_num_heads=one.kv_heads,
            scale=one.scale,
            softcap=one.softcap,
            softmax_precision=ir.DataType.FLOAT.value,
        )
        replace(graph, {one.output: output} | dict(zip(one.present, present, strict=True)))
    left = [f"{layers(unknown)} stays portable: its nodes are not those of the attention that is known"]
    return left if unknown else []

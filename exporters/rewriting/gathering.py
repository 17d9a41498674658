"""Mixtures of experts in standard operators: the chosen experts' matrices, gathered for each token."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.rewriting.edit import Editor, replace, sizes
from exporters.rewriting.experts import Mixture, editor_at, find_mixtures
from exporters.rewriting.stacks import Stack, constant_sizes, stack_of


def gather_mixtures(model: ir.Model) -> int:
    """Let each token multiply the matrices of its own experts, gathered for it; for few tokens at a time.

    Returns
    -------
    int
        How many mixtures do so now.
    """
    found = find_mixtures(model)
    for one in found:
        put = _Gathering(editor_at(model.graph, one), one)
        (tokens, width), inner = sizes(one.hidden), constant_sizes(one.down)[2]
        each = tokens, one.active
        column = put("Unsqueeze", one.hidden, put.whole([1, 3]), shape=(tokens, 1, width, 1))
        both = put("Reshape", put.multiplied(one.gate_up, column), put.whole([0, 0, -1, 2]), shape=(*each, inner, 2))
        gate, up = (put("Gather", both, put.whole([half]), shape=(*each, inner, 1), axis=3) for half in (0, 1))
        gated = put("Mul", gate, put("Sigmoid", gate, like=gate), like=gate)
        share = put("Unsqueeze", one.weights, put.whole([2, 3]), shape=(*each, 1, 1))
        gated = put("Mul", put("Mul", gated, up, like=gate), share, like=gate)
        outputs = put.multiplied(one.down, gated)
        output = put("ReduceSum", outputs, put.whole([1, 3]), shape=(tokens, width), keepdims=0)
        replace(model.graph, {one.output: output})
    RemoveUnusedNodesPass()(model)
    return len(found)


class _Gathering:
    """Puts nodes into a graph that multiply the matrices of chosen experts."""

    def __init__(self, editor: Editor, one: Mixture) -> None:
        self._editor, self._one = editor, one
        self.whole = editor.constant

    def __call__(self, kind: str, *inputs: ir.Value | None, **how: Any) -> ir.Value:
        return self._editor.add(kind, *inputs, **{"dtype": self._one.hidden.dtype, **how})

    def number(self, value: float) -> ir.Value:
        """A constant of one element."""
        return self._editor.constant([value], np.float32)

    def multiplied(self, matrices: ir.Value, columns: ir.Value) -> ir.Value:
        """Products (T, k, outputs, 1) with columns (T, k or 1, inputs, 1)."""
        stack = stack_of(matrices)
        each = sizes(self._one.chosen)
        rows = constant_sizes(matrices)[1]
        if stack is None:
            gathered = self("Gather", matrices, self._one.chosen, shape=(*each, *constant_sizes(matrices)[1:]), axis=0)
            return self("MatMul", gathered, columns, shape=(*each, rows, 1))
        terms = self._of_bytes(stack, columns)
        blocks = self("Reshape", terms, self.whole([0, 0, 0, constant_sizes(stack.scales)[2], -1]))
        sums = self("ReduceSum", blocks, self.whole([4]), keepdims=0)
        # Numbers stand around a zero point, so that each block of inputs was counted so many times too often.
        inputs = self("Reshape", columns, self.whole([0, 0, 1, -1, stack.block]))
        often = self("Mul", self("ReduceSum", inputs, self.whole([4]), keepdims=0), self.number(2 ** (stack.bits - 1)))
        scales = self("Gather", stack.scales, self._one.chosen, axis=0)
        scaled = self("Mul", self("Sub", sums, often), scales)
        return self("ReduceSum", scaled, self.whole([3]), shape=(*each, rows, 1), keepdims=1)

    def _of_bytes(self, stack: Stack, columns: ir.Value) -> ir.Value:
        """Numbers times inputs, those of a byte added: (T, k, outputs, bytes). TensorRT has no operators for bits."""
        packed = self("Gather", stack.packed(self._editor.graph), self._one.chosen, dtype=ir.DataType.UINT8, axis=0)
        both = self("Cast", packed, to=ir.DataType.FLOAT)
        if stack.bits == 8:
            return self("Mul", both, self("Reshape", columns, self.whole([0, 0, 1, -1])))
        pairs = self("Reshape", columns, self.whole([0, 0, -1, 2]))
        turned = self("Transpose", pairs, perm=[0, 1, 3, 2])
        even, odd = (self("Gather", turned, self.whole([half]), axis=2) for half in (0, 1))
        # A byte is low + 16 * high, so that low * even + high * odd = byte * even + high * (odd - 16 * even).
        high = self("Floor", self("Mul", both, self.number(1 / 16)))
        rest = self("Sub", odd, self("Mul", even, self.number(16)))
        return self("Add", self("Mul", both, even), self("Mul", high, rest))

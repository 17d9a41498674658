"""Matrices of experts in few bits, as portable graphs have them and as others take the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.rewriting.edit import Editor, producer


@dataclass(frozen=True)
class Stack:
    """Matrices of experts in few bits, numbers around a zero point in the middle of what the bits hold.

    Attributes
    ----------
    numbers : ir.Value
        (E, outputs, inputs), in uint4 or uint8.
    scales : ir.Value
        (E, outputs, inputs / block)
    """

    numbers: ir.Value
    scales: ir.Value

    @property
    def bits(self) -> int:
        """Of a number."""
        return 4 if self.numbers.dtype == ir.DataType.UINT4 else 8

    @property
    def block(self) -> int:
        """Inputs that share a scale."""
        return constant_sizes(self.numbers)[2] // constant_sizes(self.scales)[2]

    def packed(self, graph: ir.Graph) -> ir.Value:
        """The same bytes as uint8: of 4 bits, (E, outputs, inputs / 2), the earlier input in the lower half."""
        if self.bits == 8:
            return self.numbers
        name = f"{self.numbers.name}/packed"
        if name not in graph.initializers:
            graph.register_initializer(_initializer(_packed(self.numbers.const_value, name)))
        return graph.initializers[name]

    def floats(self, editor: Editor) -> ir.Value:
        """The matrices that numbers of 8 bits stand for."""
        zeros = np.full(constant_sizes(self.scales), 128, np.uint8)
        name = f"zeros_{'x'.join(map(str, zeros.shape))}"
        if name not in editor.graph.initializers:
            editor.graph.register_initializer(_initializer(ir.tensor(zeros, name=name)))
        stored = self.numbers, self.scales, editor.graph.initializers[name]
        known: dict[str, Any] = {"shape": self.numbers.shape, "dtype": ir.DataType.FLOAT}
        return editor.add("DequantizeLinear", *stored, **known, axis=2, block_size=self.block)


def stack_of(matrices: ir.Value) -> Stack | None:
    """What matrices of experts are made of; None where they are floats."""
    node = producer(matrices, "DequantizeLinear")
    numbers, scales = node.inputs[:2] if node is not None else (None, None)
    return Stack(numbers, scales) if numbers is not None and scales is not None else None


def stacks_of(mixture: ir.Node) -> list[Stack]:
    """What a node of ONNX Runtime's mixture in few bits has: of gate and up projection, of down projection."""
    pairs = (mixture.inputs[2:4], mixture.inputs[5:7])
    return [Stack(numbers, scales) for numbers, scales in pairs if numbers is not None and scales is not None]


def constant_sizes(value: ir.Value) -> tuple[int, ...]:
    """A weight's shape."""
    if not isinstance(value.shape, ir.Shape):
        raise AssertionError("weights have a constant shape")
    return value.shape.numpy()


def _packed(tensor: ir.TensorProtocol | None, name: str) -> ir.TensorProtocol:
    """A stack of numbers of 4 bits as the bytes that it is stored in, which stay where they are."""
    if tensor is None:
        raise AssertionError("experts are constants")
    *stacked, inputs = tensor.shape.numpy()
    shape = ir.Shape([*stacked, inputs // 2])
    if isinstance(tensor, ir.ExternalTensor):
        place = tensor.location, tensor.offset, tensor.length, ir.DataType.UINT8
        return ir.ExternalTensor(*place, shape=shape, name=name, base_dir=tensor.base_dir)
    return ir.tensor(np.frombuffer(tensor.tobytes(), np.uint8).reshape(shape.numpy()), name=name)


def _initializer(tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.Value(name=tensor.name, const_value=tensor, shape=shape, type=ir.TensorType(tensor.dtype))

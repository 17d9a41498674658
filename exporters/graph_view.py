"""Questions that a linter asks about an ONNX graph: its nodes, subgraphs included, their constants and types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

SAME_VALUES = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that leave a constant's values what they are, whatever they do to its type and shape."""

LARGEST_VALUE = 4096
"""Elements up to which a constant's values are read: longer ones are weights."""

_RESULT = {
    "ArgMax": "INT64",
    "ArgMin": "INT64",
    "Shape": "INT64",
    "Size": "INT64",
    "NonZero": "INT64",
    **dict.fromkeys(("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN"), "BOOL"),
    **dict.fromkeys(("Less", "LessOrEqual", "Not", "Or", "Xor"), "BOOL"),
}
"""Element types of results that do not follow from those of the inputs."""

_DATA_INPUT = {"Where": 1, "DequantizeLinear": 1}
"""Input whose element type the result has, where that is not the first."""


@dataclass(frozen=True)
class Placed:
    """A node, and the nodes that it is in the body of, in words."""

    node: NodeProto
    inside: str

    def __str__(self) -> str:
        return f"{self.inside}{label(self.node)}"


def label(node: NodeProto) -> str:
    """A node for people: its operator and its name, or where it has none the name of what it computes."""
    name = node.name or f"-> {next(iter(node.output), '')}"
    return f"{node.op_type} {name}"


def attribute(node: NodeProto, name: str) -> onnx.AttributeProto | None:
    """An attribute of a node, None if it is not given."""
    return next((one for one in node.attribute if one.name == name), None)


class GraphView:
    """A model, looked at.

    Names are unique across a graph and the bodies inside it, as ONNX asks, so one table of each kind does.

    Parameters
    ----------
    name : str
        What findings call it.
    model : onnx.ModelProto
        Whose external weights need not be there.
    """

    def __init__(self, name: str, model: onnx.ModelProto) -> None:
        self.name = name
        self.model = model
        graphs = list(_graphs(model.graph))
        given = {value.name for graph in graphs for value in graph.input}
        self.tensors = [tensor for graph in graphs for tensor in graph.initializer]
        # A default of an input is no constant: whoever runs the graph may give another.
        self._constants = {tensor.name: tensor for tensor in self.tensors if tensor.name not in given}
        self._producers = {output: node for graph in graphs for node in graph.node for output in node.output}
        self.declared: dict[str, str] = {
            value.name: TensorProto.DataType.Name(value.type.tensor_type.elem_type)
            for graph in graphs
            for value in (*graph.input, *graph.output, *graph.value_info)
            if value.type.tensor_type.elem_type
        } | {tensor.name: TensorProto.DataType.Name(tensor.data_type) for tensor in self.tensors}

    @cached_property
    def nodes(self) -> tuple[Placed, ...]:
        """All nodes, those of bodies after the ones that they belong to."""
        return tuple(_placed(self.model.graph, ""))

    def is_constant(self, name: str) -> bool:
        """Whether a value is known before the graph runs, its operators folded."""
        return self._tensor(name) is not None

    def values(self, name: str) -> np.ndarray | None:
        """Values of a small constant, flat; None for what is none, or is kept outside of the file."""
        tensor = self._tensor(name)
        if tensor is None or uses_external_data(tensor) or int(np.prod(tensor.dims)) > LARGEST_VALUE:
            return None
        return np.asarray(numpy_helper.to_array(tensor)).reshape(-1)

    def element_type(self, name: str) -> str:
        """A value's element type as ONNX names it; empty where the graph does not tell."""
        for _ in range(len(self._producers) + 1):
            if name in self.declared:
                return self.declared[name]
            node = self._producers.get(name)
            if node is None:
                return ""
            to = attribute(node, "to") if node.op_type == "Cast" else None
            if to is not None:
                return str(TensorProto.DataType.Name(to.i))
            if node.op_type in _RESULT or (node.op_type == "TopK" and name != node.output[0]):
                return _RESULT.get(node.op_type, "INT64")
            tensor = self._tensor(name)
            if tensor is not None:
                return str(TensorProto.DataType.Name(tensor.data_type))
            index = _DATA_INPUT.get(node.op_type, 0)
            if len(node.input) <= index:
                return ""
            name = node.input[index]
        return ""

    def producer(self, name: str) -> NodeProto | None:
        """The node that computes a value."""
        return self._producers.get(name)

    def _tensor(self, name: str) -> TensorProto | None:
        """The tensor that a value has the values of."""
        for _ in range(len(self._producers) + 1):
            if name in self._constants:
                return cast(TensorProto, self._constants[name])
            node = self._producers.get(name)
            if node is None:
                return None
            if node.op_type == "Constant":
                return _constant(node)
            if node.op_type not in SAME_VALUES or not node.input:
                return None
            name = node.input[0]
        return None


def _constant(node: NodeProto) -> TensorProto | None:
    for one in node.attribute:
        if one.name == "value":
            return cast(TensorProto, one.t)
        if one.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(
                np.array(one.i if one.name == "value_int" else list(one.ints), dtype=np.int64)
            )
        if one.name in ("value_float", "value_floats"):
            values = one.f if one.name == "value_float" else list(one.floats)
            return numpy_helper.from_array(np.array(values, dtype=np.float32))
    return None


def _bodies(node: NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    for one in node.attribute:
        if one.type == onnx.AttributeProto.GRAPH:
            yield one.name, one.g
        for graph in one.graphs:
            yield one.name, graph


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for _, body in _bodies(node):
            yield from _graphs(body)


def _placed(graph: onnx.GraphProto, inside: str) -> Iterator[Placed]:
    for node in graph.node:
        yield Placed(node, inside)
        for name, body in _bodies(node):
            yield from _placed(body, f"{inside}{label(node)}/{name}/")

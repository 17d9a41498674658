"""Small edits of a graph: constants read, nodes put in, values replaced and shared ones found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
LARGEST_READ = 1024
"""Elements up to which a constant's values are looked at: longer ones are weights, and stay where they are."""

Size = int | ir.SymbolicDim
"""Of one axis of a value."""


def producer(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node that computes a value, if it is of one of these operators of the standard domain."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in kinds and node.domain == "" else None


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Values of a small constant; None for what is none."""
    tensor = None if value is None else value.const_value
    return None if tensor is None or tensor.size > LARGEST_READ else tensor.numpy()


def number(value: ir.Value | None) -> float | None:
    """A constant of one element; None for what is none."""
    values = constant(value)
    return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None


def sizes(value: ir.Value) -> tuple[Size, ...]:
    """A value's shape; empty where it is not known."""
    return tuple(value.shape or ())


def last(value: ir.Value) -> int | None:
    """Size of a value's last axis, where it is a constant."""
    known = sizes(value)
    return known[-1] if known and isinstance(known[-1], int) else None


def permuted(value: ir.Value | None, *order: int) -> ir.Value | None:
    """What a value is, its axes in another order; None where it is not."""
    node = producer(value, "Transpose")
    return node.inputs[0] if node is not None and tuple(node.attributes.get_ints("perm", ())) == order else None


def commuted(node: ir.Node) -> tuple[tuple[ir.Value, ir.Value], ...]:
    """Both orders of the inputs of an operator that does not mind which comes first."""
    first, second = node.inputs
    return () if first is None or second is None else ((first, second), (second, first))


class Editor:
    """Puts nodes into a graph before one that is there.

    Parameters
    ----------
    graph : ir.Graph
    before : ir.Node
        Where the next nodes go; may be set anew.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph = graph
        self.before = before

    def add(
        self,
        kind: str,
        *inputs: ir.Value | None,
        like: ir.Value | None = None,
        shape: Sequence[Size | str] | None = None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Put in a node of one output, which is `like` another value or has this shape and type."""
        return self.add_all(kind, *inputs, likes=[like], shape=shape, dtype=dtype, domain=domain, **attributes)[0]

    def add_all(
        self,
        kind: str,
        *inputs: ir.Value | None,
        likes: Sequence[ir.Value | None],
        shape: Sequence[Size | str] | None = None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Put in a node with an output for each of `likes`."""
        node = ir.node(kind, list(inputs), attributes, domain=domain, num_outputs=len(likes))
        for output, like in zip(node.outputs, likes, strict=True):
            known = shape if shape is not None else (None if like is None else like.shape)
            element = dtype or (None if like is None else like.dtype)
            if known is None and element is None:
                output.name = ""  # not wanted
            output.shape = None if known is None else ir.Shape(known)
            if element is not None:
                output.dtype = element
        self.graph.insert_before(self.before, node)
        return node.outputs

    def constant(self, values: Any, dtype: Any = np.int64) -> ir.Value:
        """A small constant, which equal ones share."""
        array = np.asarray(values, dtype=dtype)
        shape = "x".join(map(str, array.shape))
        name = f"rewriting_{array.dtype.name}_{shape}_{'_'.join(map(str, array.reshape(-1).tolist()))}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[name]


def replace(graph: ir.Graph, values: Mapping[ir.Value, ir.Value]) -> None:
    """Let other values stand for some, also where the graph gives those out: names of outputs stay."""
    for old, new in values.items():
        name, given_out = old.name, old.is_graph_output()
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if given_out:
            old.name, new.name = f"{name}/replaced", name


def opset(graph: ir.Graph) -> int:
    """Version of the standard operators."""
    return graph.opset_imports.get("", 0)

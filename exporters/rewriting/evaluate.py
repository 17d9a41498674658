"""What small parts of a graph come to on samples: masks and rotary angles, which depend on mask and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

Arrays = Mapping[str, NDArray[Any]]


def sources(value: ir.Value, *, of_shapes: bool = False) -> set[str]:
    """Names of the graph inputs that a value is computed from.

    Parameters
    ----------
    value : ir.Value
    of_shapes : bool
        Whether inputs count of which only the shape is asked.
    """
    return {str(one.name) for one in _before(value, of_shapes) if one.is_graph_input()}


def evaluate(graph: ir.Graph, values: Sequence[ir.Value], feeds: Arrays) -> list[NDArray[Any]]:
    """Compute some values of a graph.

    Parameters
    ----------
    graph : ir.Graph
    values : sequence of ir.Value
    feeds : mapping of str to array
        Every input that they are computed from.
    """
    needed = {name for value in values for name in sources(value, of_shapes=True)}
    inputs = [value for value in graph.inputs if value.name in needed]
    part = ir.convenience.extract(graph, inputs, list(values))
    model = ir.to_proto(ir.Model(part, ir_version=10))
    del model.graph.value_info[:]
    evaluator = ReferenceEvaluator(model)
    return list(evaluator.run(None, {str(value.name): feeds[str(value.name)] for value in inputs}))


def _before(value: ir.Value, of_shapes: bool) -> list[ir.Value]:
    """A value and all that it is computed from."""
    seen: dict[ir.Value, None] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen[one] = None
        node = one.producer()
        if node is not None and (of_shapes or node.op_type != "Shape"):
            waiting += [given for given in node.inputs if given is not None]
    return list(seen)


def sample_feeds(graph: ir.Graph, past: int, new: int, rows: Sequence[Sequence[int]]) -> dict[str, NDArray[Any]]:
    """Zeros for each input of a decoder's graph, but a mask and positions.

    Parameters
    ----------
    graph : ir.Graph
    past, new : int
        Cached and new tokens of a row.
    rows : sequence of sequence of int
        The mask (B, past + new).
    """
    lengths = {
        "batch_size": len(rows),
        "sequence_length": new,
        "past_sequence_length": past,
        "total_sequence_length": past + new,
        "text_count": new,
        "visual_count": new,
    }
    feeds: dict[str, NDArray[Any]] = {}
    generator = np.random.default_rng(0)
    for value in graph.inputs:
        shape = [size if isinstance(size, int) else lengths[str(size.value)] for size in value.shape or ()]
        kind = np.float32 if value.dtype is None else value.dtype.numpy()
        feeds[str(value.name)] = np.zeros(shape, dtype=kind)
    feeds["attention_mask"] = np.array(rows, dtype=np.int64)
    feeds["position_ids"] = generator.integers(0, 3000, feeds["position_ids"].shape)
    return feeds

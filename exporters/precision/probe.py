"""What values of exported graphs reach on samples, and how far rounding to a narrow type takes them.

A probe is a graph twice over: computed in float32, and beside it with every value rounded to the narrow type. It gives
what the graph gives, in float32, and for each value its largest magnitude and the largest difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from exporters.graph_spec import SourceModule
from exporters.precision.floats import cast_graph_to_float32, element_types
from vtc.data.samples import Sample
from vtc.runtime.onnxruntime.graph import Graph
from vtc.runtime.onnxruntime.providers import choose_provider
from vtc.visual_tokens import TextEmbeddings

LARGEST, DIFFERENCE = "largest of ", "difference of "
ROUNDED = "rounded/"
NEW_TOKENS = 2
"""The second is decoded, with a cache."""


@dataclass
class Reached:
    """What one value of a graph reached.

    Attributes
    ----------
    largest : float
        Magnitude, in float32.
    difference : float
        Between float32 and the narrow type, from the same inputs of the graph.
    """

    largest: float = 0.0
    difference: float = 0.0

    def note(self, largest: float = 0.0, difference: float = 0.0) -> None:
        """Take in another sample."""
        self.largest = max(self.largest, largest)
        self.difference = max(self.difference, math.inf if math.isnan(difference) else difference)


def probe(model: ModelProto, kind: int) -> ModelProto:
    """A graph's probe.

    Parameters
    ----------
    model : ModelProto
        With its weights; not changed.
    kind : int
        The narrow element type, whose values are looked at.
    """
    types = element_types(model)
    wide, rounded = deepcopy(model), deepcopy(model)
    cast_graph_to_float32(wide, kind)
    cast_graph_to_float32(rounded, kind, rounding=True)
    shared = {tensor.name for tensor in wide.graph.initializer} | {value.name for value in wide.graph.input}
    rounds = {name for node in rounded.graph.node for name in node.output}  # less what nobody asks for
    looked_at = [
        name
        for node in wide.graph.node
        for name in node.output
        if types.get(name) == kind and name not in shared and name in rounds
    ]
    for node in rounded.graph.node:
        node.input[:] = [name if name in shared or not name else ROUNDED + name for name in node.input]
        node.output[:] = [name and ROUNDED + name for name in node.output]
        node.name = node.name and ROUNDED + node.name
    graph = wide.graph
    noted = (*graph.value_info, *graph.input)
    shapes = {value.name: value.type.tensor_type.shape for value in noted}
    del graph.value_info[:]
    graph.node.extend(rounded.graph.node)
    # ONNX Runtime begins with what the last node that nobody uses asks for. So values are measured in the order in
    # which they are made, and need not all be kept until the end.
    for name in reversed(looked_at):
        empty = "past_sequence_length" in _sizes(shapes.get(name))
        graph.node.append(helper.make_node("Sub", [ROUNDED + name, name], [f"{name}/error"]))
        graph.node.extend(_largest(f"{name}/error", DIFFERENCE + name, empty=empty))
        graph.node.extend(_largest(name, LARGEST + name, empty=empty))
    for name in looked_at:
        found = LARGEST + name, DIFFERENCE + name
        graph.output.extend(helper.make_tensor_value_info(result, TensorProto.FLOAT, None) for result in found)
    if any("probe/zero" in node.input for node in graph.node):
        graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "probe/zero"))
        graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "probe/flat"))
    return wide


def _largest(name: str, result: str, *, empty: bool) -> list[NodeProto]:
    """Largest magnitude of a value, 0 of one without elements, which have no largest."""
    nodes, source = [], name
    if empty:
        source = f"{result}/some"
        nodes.append(helper.make_node("Reshape", [name, "probe/flat"], [f"{result}/flat"]))
        nodes.append(helper.make_node("Concat", [f"{result}/flat", "probe/zero"], [source], axis=0))
    # Without a copy of all magnitudes.
    nodes.append(helper.make_node("ReduceMax", [source], [f"{result}/most"], keepdims=0))
    nodes.append(helper.make_node("ReduceMin", [source], [f"{result}/least"], keepdims=0))
    nodes.append(helper.make_node("Neg", [f"{result}/least"], [f"{result}/below"]))
    nodes.append(helper.make_node("Max", [f"{result}/most", f"{result}/below"], [result]))
    return nodes


def _sizes(shape: onnx.TensorShapeProto | None) -> set[str]:
    return {size.dim_param for size in shape.dim} if shape is not None else set()


def measure(
    graph: ModelProto, modules: Sequence[SourceModule], samples: Sequence[Sample], scratch: Path
) -> dict[str, Reached]:
    """Run a probe on what its module is called with while the PyTorch model answers samples.

    Parameters
    ----------
    graph : ModelProto
        A probe, see :func:`probe`.
    modules : sequence of SourceModule
    samples : sequence of Sample
    scratch : Path
        Where the graph may lie meanwhile.

    Returns
    -------
    dict of value name to Reached
    """
    reached: dict[str, Reached] = {}
    session = opened(graph, scratch)

    def note(found: Mapping[str, Any]) -> None:
        for name, output in found.items():
            if name.startswith(LARGEST):
                reached.setdefault(name.removeprefix(LARGEST), Reached()).note(largest=float(output.numpy()))
            elif name.startswith(DIFFERENCE):
                reached.setdefault(name.removeprefix(DIFFERENCE), Reached()).note(difference=float(output.numpy()))

    fed(session, modules, samples, note)
    return reached


def opened(graph: ModelProto, scratch: Path, provider: str | None = None) -> Graph:
    """A session of a graph that no file is kept of; its weights lie beside `scratch` where it does not hold them."""
    onnx.save(graph, scratch)
    try:
        return Graph(scratch, choose_provider(provider), sparing=True)
    finally:
        scratch.unlink()


def fed(
    session: Graph,
    modules: Sequence[SourceModule],
    samples: Sequence[Sample],
    take: Callable[[Mapping[str, Any]], None],
    new_tokens: int = NEW_TOKENS,
) -> None:
    """Run a graph on what its module is called with while the PyTorch model answers samples.

    Parameters
    ----------
    session : Graph
        Float32 where it takes floats.
    modules : sequence of SourceModule
    samples : sequence of Sample
    take : callable
        Given the graph's outputs by name, each time.
    new_tokens : int
    """
    names = list(session.inputs)

    def run(one: SourceModule, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _tensors(one.takes(*args, **kwargs))
        values = [value.float() if value.is_floating_point() else value for value in given]
        feeds = {name: value.cpu().numpy() for name, value in zip(names, values, strict=True)}
        take(dict(zip(session.outputs, session.run(feeds, host=session.outputs), strict=True)))

    for one in modules:
        handle = one.module.register_forward_pre_hook(partial(run, one), with_kwargs=True)
        try:
            for sample in samples:
                one.model.generate([sample.images], [sample.prompt], new_tokens)
        finally:
            handle.remove()


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in arguments, in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, TextEmbeddings):
        yield from (values.states, values.mask)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)

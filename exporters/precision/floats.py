"""Float types of an exported graph: nodes moved to float32, and whole graphs run in float32 with or without rounding.

All work in place on a graph of float32 and one narrower type, float16 or bfloat16, whose values' types it states,
as the exporter does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from copy import deepcopy

from onnx import ModelProto, NodeProto, TensorProto, helper

NARROW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""Element type of graphs of a precision's base."""

ANY_FLOAT = frozenset({"Cast", "Shape"})
"""Operators that do not mind which float type comes in."""


def element_types(model: ModelProto) -> dict[str, int]:
    """Element type of every value whose type the graph states."""
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def cast_type(node: NodeProto) -> int:
    """What a ``Cast`` casts to; 0 of other nodes."""
    return next((attribute.i for attribute in node.attribute if node.op_type == "Cast" and attribute.name == "to"), 0)


def set_cast_type(node: NodeProto, kind: int) -> None:
    """Let a ``Cast`` cast to something else."""
    next(attribute for attribute in node.attribute if attribute.name == "to").i = kind


def cast_nodes_to_float32(model: ModelProto, kind: int, chosen: Set[str]) -> None:
    """Compute some nodes in float32.

    Parameters
    ----------
    model : ModelProto
    kind : int
        The narrow element type.
    chosen : set of str
        What the nodes give. It keeps its name and becomes float32; other nodes get it cast back.
    """
    graph, types = model.graph, element_types(model)
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    outputs = {value.name for value in graph.output}
    cast_names: dict[str, str] = {}
    nodes: list[NodeProto] = []
    made: set[str] = set()

    def cast(name: str, to: int, result: str) -> str:
        if result not in made:
            made.add(result)
            nodes.append(helper.make_node("Cast", [name], [result], name=f"cast_{result}", to=to))
            graph.value_info.append(helper.make_tensor_value_info(result, to, None))
        return result

    def wide(name: str) -> str:
        if name in cast_names:
            return cast_names[name]
        if types.get(name) != kind:
            return name
        # What was narrowed only to come here had better not be.
        source = casts[name].input[0] if name in casts else ""
        if types.get(source) == TensorProto.FLOAT:
            return source
        return cast(name, TensorProto.FLOAT, f"{name}/float")

    for node in graph.node:
        constant = cast_type(node) != kind and not any(types.get(name) == kind for name in node.input)
        if constant or chosen.isdisjoint(node.output):
            for place, name in enumerate(node.input):
                if name in cast_names and node.op_type in ANY_FLOAT:
                    node.input[place] = cast_names[name]
                elif cast_names.get(name) == name:
                    node.input[place] = cast(name, kind, f"{name}/narrow")
            nodes.append(node)
            continue
        if cast_type(node) == kind:
            set_cast_type(node, TensorProto.FLOAT)
            node.input[0] = cast_names.get(node.input[0], node.input[0])
        else:
            node.input[:] = [wide(name) for name in node.input]
        nodes.append(node)
        for place, name in enumerate(node.output):
            if types.get(name) != kind:
                continue
            cast_names[name] = name
            if name in outputs:
                cast_names[name] = node.output[place] = f"{name}/float"
                graph.value_info.append(helper.make_tensor_value_info(cast_names[name], TensorProto.FLOAT, None))
                cast(cast_names[name], kind, name)
    for value in graph.value_info:
        if cast_names.get(value.name) == value.name:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    _replace(model, nodes)


def cast_graph_to_float32(model: ModelProto, kind: int, *, rounding: bool = False) -> None:
    """Compute everything in float32, with the weights as they are.

    Parameters
    ----------
    model : ModelProto
    kind : int
        The narrow element type.
    rounding : bool
        Round what each node gives to the narrow type, which is what an arithmetic of that type does; so a graph can be
        judged where its type cannot be run.
    """
    graph, types = model.graph, element_types(model)
    nodes: list[NodeProto] = []
    wide: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.data_type == kind:
            wide[tensor.name] = f"{tensor.name}/wide"
            nodes.append(helper.make_node("Cast", [tensor.name], [wide[tensor.name]], to=TensorProto.FLOAT))
    weights = set(wide)
    for value in graph.input:
        if rounding and value.type.tensor_type.elem_type == kind:
            wide[value.name] = f"{value.name}/rounded"
            nodes += _rounded(value.name, wide[value.name], kind)
    for node in graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
        if cast_type(node) == kind:
            set_cast_type(node, TensorProto.FLOAT)
        nodes.append(node)
        narrow = any(attribute.t.data_type == kind for attribute in node.attribute)  # of a constant's value
        for place, name in enumerate(node.output):
            if types.get(name) == kind and (rounding or narrow):
                node.output[place] = f"{name}/exact"
                nodes += _rounded(f"{name}/exact", name, kind)
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == kind and value.name not in weights:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    _replace(model, nodes)


def _rounded(name: str, result: str, kind: int) -> Iterator[NodeProto]:
    yield helper.make_node("Cast", [name], [f"{result}/rounding"], to=kind)
    yield helper.make_node("Cast", [f"{result}/rounding"], [result], to=TensorProto.FLOAT)


def _replace(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Put other nodes into a graph, less those that nothing asks for."""
    needed = {value.name for value in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    set_nodes(model, kept[::-1])


def set_nodes(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Let a graph have these nodes, some of which may be its own."""
    copies = deepcopy(nodes)  # clearing the graph empties its own
    del model.graph.node[:]
    model.graph.node.extend(copies)

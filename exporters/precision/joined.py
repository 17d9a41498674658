"""Products of one value with several weights become one product, whose result is split.

A query, a key and a value have the same input, and so have the two halves of a gated layer. A decoding step is a few
hundred small products, and each is a start and a wait for all threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporters.precision.floats import set_nodes


class _Product(NamedTuple):
    """A weight's nodes: what makes it of its numbers, its product, and the addition of its bias where there is one."""

    dequantize: NodeProto
    product: NodeProto
    addition: NodeProto | None
    bias: str

    @property
    def last(self) -> NodeProto:
        return self.addition or self.product


def join_products(model: ModelProto) -> int:
    """Join products of quantised weights in place.

    Those are joined that multiply the same value by weights of the same type and blocks, a column an output.

    Parameters
    ----------
    model : ModelProto
        With its weights.

    Returns
    -------
    int
        How many products there are less.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    alike: dict[tuple[str, ...], list[_Product]] = {}
    for found in _products(model, tensors):
        numbers = tensors[found.dequantize.input[0]]
        how = sorted(f"{one.name}={helper.get_attribute_value(one)}" for one in found.dequantize.attribute)
        key = found.product.input[0], str(numbers.data_type), str(found.addition is not None), *how
        alike.setdefault(key, []).append(found)
    groups = [group for group in alike.values() if len(group) > 1]
    instead = {id(group[0].product): _joined(model, tensors, group) for group in groups}
    gone = {id(node) for group in groups for one in group for node in (one.dequantize, one.product, one.addition)}
    if groups:
        kept = [instead.get(id(node), [] if id(node) in gone else [node]) for node in model.graph.node]
        set_nodes(model, [node for nodes in kept for node in nodes])
        used = {name for node in model.graph.node for name in node.input}
        for bias in {one.bias for group in groups for one in group if one.bias} - used:
            model.graph.initializer.remove(tensors[bias])
    return sum(len(group) - 1 for group in groups)


def _products(model: ModelProto, tensors: Mapping[str, TensorProto]) -> list[_Product]:
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    given_out = {value.name for value in model.graph.output}
    found = []
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) != 2 or node.input[0] not in tensors:
            continue
        blocked = {one.name: one.i for one in node.attribute}
        multiplied = users.get(node.output[0], [])
        if not (blocked.get("block_size") and blocked.get("axis") == 0 and len(multiplied) == 1):
            continue
        (product,) = multiplied
        if product.op_type != "MatMul" or product.input[1] != node.output[0] or product.output[0] in given_out:
            continue
        found.append(_Product(node, product, *_addition(product, users, tensors)))
    return found


def _addition(
    product: NodeProto, users: Mapping[str, list[NodeProto]], tensors: Mapping[str, TensorProto]
) -> tuple[NodeProto | None, str]:
    following = users.get(product.output[0], [])
    if len(following) == 1 and following[0].op_type == "Add":
        bias = next((name for name in following[0].input if name != product.output[0]), "")
        if bias in tensors and len(tensors[bias].dims) == 1:
            return following[0], bias
    return None, ""


def _joined(model: ModelProto, tensors: Mapping[str, TensorProto], group: Sequence[_Product]) -> list[NodeProto]:
    """What stands for a group, its tensors put together."""
    first = group[0]
    name = first.dequantize.output[0] + "/joined"
    widths = [tensors[one.dequantize.input[0]].dims[1] for one in group]
    stored = []
    for place, part in enumerate(("numbers", "scales")):
        parts = [tensors[one.dequantize.input[place]] for one in group]
        stored.append(_put_together(model, f"{name}/{part}", parts, axis=1))
        for tensor in parts:  # nobody else's
            model.graph.initializer.remove(tensor)
    dequantize = helper.make_node("DequantizeLinear", stored, [name], name=f"dequantize_{name}")
    dequantize.attribute.extend(first.dequantize.attribute)
    result = f"{name}/product"
    nodes = [dequantize, helper.make_node("MatMul", [first.product.input[0], name], [result], name=f"multiply_{name}")]
    if first.addition:
        bias = _put_together(model, f"{name}/bias", [tensors[one.bias] for one in group], axis=0)
        nodes.append(helper.make_node("Add", [result, bias], [f"{name}/sum"], name=f"add_{name}"))
        result = f"{name}/sum"
    sizes = numpy_helper.from_array(np.asarray(widths, np.int64), f"{name}/widths")
    model.graph.initializer.append(sizes)
    results = [one.last.output[0] for one in group]
    return [*nodes, helper.make_node("Split", [result, sizes.name], results, name=f"split_{name}", axis=-1)]


def _put_together(model: ModelProto, name: str, parts: Sequence[TensorProto], axis: int) -> str:
    """Add a tensor of others, one after the other; its name."""
    joined = np.concatenate([numpy_helper.to_array(part) for part in parts], axis=axis)
    model.graph.initializer.append(numpy_helper.from_array(joined, name))
    return name

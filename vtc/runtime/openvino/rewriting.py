"""Makes a segment's graph keep its cache to itself, in the form that OpenVINO's attention kernels take.

A bundle's portable graphs have attention in single steps, with keys and values going in and coming out. Here keys and
values become states of the runtime, and where the steps are those that exports write
(:mod:`vtc.models.parts.attention`), they become one operator: OpenVINO's CPU plugin then keeps that layer's cache in
place, with room to grow. Any other attention runs as it is, with a state that is copied at each step.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtc.runtime.openvino.device import import_openvino
from vtc.runtime.past import PAST, PRESENT


@dataclass
class _Attention:
    """One layer's attention in single steps: where it begins and ends."""

    query: Any
    key: Any
    value: Any
    mask: Any
    scale: Any
    result: Any


def keep_cache(model: Any, heads: int, width: int) -> tuple[int, set[str]]:
    """Turn the keys and values that a segment's graph takes and gives into states.

    Parameters
    ----------
    model : openvino.Model
        Changed in place; one without a cache stays as it is.
    heads, width : int
        Heads of the cache, and values of one.

    Returns
    -------
    int
        Layers whose attention became one operator; their states are empty after a reset.
    set of str
        Names of the other states, which whoever makes a request has to empty. (OpenVINO 2026.4 cannot compile graphs
        in float16 with such states that begin by themselves.)
    """
    openvino = import_openvino()
    ops = openvino.opset13
    caches = [name_of(node) for node in model.get_parameters() if name_of(node).startswith(PAST)]
    if not caches:
        return 0, set()
    mask = next(node for node in model.get_parameters() if name_of(node) == "attention_mask")
    rows = ops.gather(ops.shape_of(mask), _whole([0]), _whole(0))
    every_row = ops.range(_whole(0), ops.squeeze(rows, _whole(0)), _whole(1), "i32")
    found = [match for node in model.get_ordered_ops() if (match := _attention(node, caches)) is not None]
    for match in found:
        _fuse(ops, match, every_row)
    states = {name: name.replace(PAST, PRESENT, 1) for name in caches}
    manager = openvino.passes.Manager()
    manager.register_pass(openvino.passes.MakeStateful(states))
    manager.run_passes(model)
    shape = ops.concat([rows, _whole([heads, 0, width])], 0)
    others = set()
    for node in model.get_ops():
        if node.get_type_name() != "ReadValue":
            continue
        if any(taker.get_node().get_type_name() == "Gather" for taker in node.output(0).get_target_inputs()):
            nothing = ops.broadcast(ops.constant(0, node.get_output_element_type(0)), shape)
            node.set_arguments([nothing.output(0)])
        else:
            others.add(node.get_variable_id())
    model.validate_nodes_and_infer_types()
    return len(found), others


def take_first_of_equals(model: Any) -> None:
    """Have the lowest index win where values are equal, as ONNX's TopK has it; OpenVINO takes any if left to.

    Parameters
    ----------
    model : openvino.Model
        Changed in place.
    """
    ops = import_openvino().opset13
    for node in model.get_ordered_ops():
        if node.get_type_name() != "TopK":
            continue
        found = node.get_attributes()
        settings = [found[name] for name in ("axis", "mode", "sort", "index_element_type")]
        if found["sort"] == "value":
            stable = ops.topk(node.input_value(0), node.input_value(1), *settings, True)
            for place in (0, 1):
                node.output(place).replace(stable.output(place))


def repeat_for_experts(model: Any) -> None:
    """Repeat what is multiplied by a stack of matrices for each of them; the CPU plugin computes nonsense if left to.

    Parameters
    ----------
    model : openvino.Model
        Changed in place.
    """
    ops = import_openvino().opset13
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        left, right = (node.get_input_partial_shape(side) for side in (0, 1))
        if left.rank.is_dynamic or right.rank.is_dynamic or not 2 <= len(left) < len(right):
            continue
        more = [right[axis] for axis in range(len(right) - len(left))]
        if all(size.is_static for size in more):
            sizes = [int(size.get_length()) for size in more] + [1] * len(left)
            one = ops.unsqueeze(node.input_value(0), _whole(list(range(len(more)))))
            each = ops.broadcast(one, _whole(sizes), broadcast_spec="BIDIRECTIONAL")
            node.input(0).replace_source_output(each.output(0))


def _attention(softmax: Any, caches: Collection[str]) -> _Attention | None:
    """The attention around a softmax, if it is in the steps that exports write and over a cache's keys and values."""
    if softmax.get_type_name() != "Softmax":
        return None
    add = _up(softmax, "Add")
    scores = _up(add, "Reshape")
    scaled = _up(scores, "Multiply")
    product = _up(scaled, "MatMul")
    stacked, turned = _up(product, "Reshape"), _up(product, "Transpose", 1)
    shares = _down(softmax, "Reshape")
    mixed = _down(shares, "MatMul")
    result = _down(mixed, "Reshape")
    key, value = _up(turned, "Concat"), _up(mixed, "Concat", 1)
    if stacked is None or result is None or not _cached(key, caches) or not _cached(value, caches):
        return None
    query, mask = stacked.input_value(0), add.input_value(1)
    shapes = result.get_output_partial_shape(0), key.get_output_partial_shape(0), value.get_output_partial_shape(0)
    whole = all(len(shape) == 4 and shape[1].is_static and shape[3].is_static for shape in shapes)
    ranks = len(query.get_partial_shape()), len(mask.get_partial_shape())
    if not whole or ranks != (4, 5) or mask.get_element_type() != query.get_element_type():
        return None
    return _Attention(query, key.output(0), value.output(0), mask, scaled.input_value(1), result)


def _fuse(ops: Any, match: _Attention, every_row: Any) -> None:
    heads = int(match.result.get_output_partial_shape(0)[1].get_length())
    for grown in (match.key, match.value):
        # The plugin knows its cache by rows that may change places, as in a beam search; here each stays where it is.
        concat = grown.get_node()
        concat.input(0).replace_source_output(ops.gather(concat.input_value(0), every_row, _whole(0)).output(0))
    key, value = (_repeated(ops, grown, heads) for grown in (match.key, match.value))
    mask = ops.squeeze(match.mask, _whole([1]))
    fused = ops.scaled_dot_product_attention(match.query, key, value, mask, match.scale, False)
    match.result.output(0).replace(fused.output(0))


def _repeated(ops: Any, grown: Any, heads: int) -> Any:
    """Keys or values (B, Hkv, T, Dh) for each of the query's heads; the plugin reads them where they are."""
    shape = grown.get_partial_shape()
    groups = heads // int(shape[1].get_length())
    if groups == 1:
        return grown
    spread = ops.broadcast(
        ops.unsqueeze(grown, _whole([2])), _whole([1, 1, groups, 1, 1]), broadcast_spec="BIDIRECTIONAL"
    )
    return ops.reshape(spread, _whole([0, heads, -1, int(shape[3].get_length())]), True)


def _up(node: Any, kind: str, side: int = 0) -> Any:
    """What makes an input of a node, conversions left out; None if it is of another kind."""
    if node is None:
        return None
    above = node.input_value(side).get_node()
    while above.get_type_name() == "Convert":
        above = above.input_value(0).get_node()
    return above if above.get_type_name() == kind else None


def _down(node: Any, kind: str) -> Any:
    """The one node that takes a node's output, conversions left out; None if others do, or it is of another kind."""
    while node is not None:
        takers = [taker.get_node() for taker in node.output(0).get_target_inputs()]
        node = takers[0] if len(takers) == 1 else None
        if node is None or node.get_type_name() != "Convert":
            break
    return node if node is not None and node.get_type_name() == kind else None


def _cached(concat: Any, caches: Collection[str]) -> bool:
    """Whether what is concatenated begins with a cache, and goes nowhere but to the attention and out of the graph."""
    if concat is None or concat.get_input_size() != 2:
        return False
    before = concat.input_value(0).get_node()
    takers = [taker.get_node().get_type_name() for taker in concat.output(0).get_target_inputs()]
    return (
        before.get_type_name() == "Parameter" and name_of(before) in caches and len(takers) == 2 and "Result" in takers
    )


def name_of(node: Any) -> str:
    """What ONNX calls an input or output."""
    name: str = node.get_friendly_name()
    return name.removesuffix("/sink_port_0")


def _whole(values: Any) -> Any:
    return np.array(values, dtype=np.int64)

"""Mixtures of experts: every expert on all tokens, as exported, becomes the experts that each token chose.

For ONNX Runtime that is one node; in standard operators, the chosen experts' matrices are gathered for each token. Both
take the weights as they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter.pattern import OrValue, Pattern

from exporters.rewriting.edit import CONTRIB, Editor, constant, producer, replace, sizes

IN_ONE_NODE = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""Types that ONNX Runtime computes a mixture in on a processor."""


@dataclass(frozen=True)
class Mixture:
    """A layer's mixture of experts on T tokens of width D, k of E experts of inner size F each.

    Attributes
    ----------
    hidden : ir.Value
        (T, D)
    chosen : ir.Value
        Numbers of the experts that a token passes, (T, k).
    weights : ir.Value
        Of their outputs, (T, k).
    gate_up : ir.Value
        Rows of gate and up projection by turns, (E, 2 * F, D).
    down : ir.Value
        (E, D, F)
    output : ir.Value
        (T, D)
    """

    hidden: ir.Value
    chosen: ir.Value
    weights: ir.Value
    gate_up: ir.Value
    down: ir.Value
    output: ir.Value

    @property
    def active(self) -> int:
        """Experts that a token passes."""
        count = sizes(self.chosen)[-1]
        if not isinstance(count, int):
            raise AssertionError("how many experts a token passes is a constant")
        return count

    @property
    def scores(self) -> ir.Value | None:
        """What the router gives each expert, (T, E); None where weights are not its softmax over the chosen ones."""
        choice = self.chosen.producer()
        share = producer(_uncast(self.weights), "Div")
        softmax = None if choice is None else producer(_uncast(choice.inputs[0]), "Softmax")
        if choice is None or share is None or softmax is None or self.chosen is not choice.outputs[1]:
            return None
        total = producer(share.inputs[1], "ReduceSum")
        ranked = choice.op_type == "TopK" and choice.attributes.get_int("largest", 1) == 1
        over_chosen = total is not None and [share.inputs[0], total.inputs[0]] == [choice.outputs[0]] * 2
        scores = _uncast(softmax.inputs[0])
        whole = softmax.attributes.get_int("axis", -1) in (-1, 1)
        same = scores is not None and scores.dtype == self.hidden.dtype
        return scores if ranked and over_chosen and whole and same else None


def find_mixtures(model: ir.Model) -> list[Mixture]:
    """The mixtures of a graph in which every expert is computed, as :mod:`vtc.models.parts.experts` writes them."""
    match = Pattern(_every_expert)
    found = []
    for node in list(model.graph):
        matched = match.match(model, model.graph, node, check_nodes_are_removable=False) if _last(node) else None
        if matched:
            given = matched.bindings
            experts, numbers = sizes(given["gate_up"])[0], constant(given["numbers"])
            if isinstance(experts, int) and numbers is not None and np.array_equal(numbers, np.arange(experts)):
                taken = {name: given[name] for name in ("hidden", "chosen", "weights", "gate_up", "down")}
                found.append(Mixture(output=node.outputs[0], **taken))
    return found


def choices(graph: ir.Graph) -> int:
    """How many mixtures a decoder's graph has: it ranks nothing but experts."""
    return sum(node.op_type == "TopK" for node in graph)


def fuse_mixtures(model: ir.Model) -> list[str]:
    """Replace mixtures by ONNX Runtime's operator, and say what stays."""
    every = choices(model.graph)
    done = 0
    for one in find_mixtures(model):
        scores = one.scores
        if scores is None or one.hidden.dtype not in IN_ONE_NODE:
            continue
        editor = _editor(model.graph, one)
        output = editor.add(
            "MoE",
            *(one.hidden, scores, one.gate_up, None, one.down),
            like=one.output,
            domain=CONTRIB,
            k=one.active,
            normalize_routing_weights=1,
            activation_type="swiglu",
            swiglu_fusion=1,
            activation_alpha=1.0,
            activation_beta=0.0,
        )
        replace(model.graph, {one.output: output})
        done += 1
    RemoveUnusedNodesPass()(model)
    if done == every:
        return []
    why = "router, activation or type is not MoE's, or an earlier vtc exported them"
    return [f"{every - done} of {every} mixtures compute every expert: {why}"]


def gather_mixtures(model: ir.Model) -> int:
    """Let each token multiply the matrices of its own experts, gathered for it; for few tokens at a time.

    Returns
    -------
    int
        How many mixtures do so now.
    """
    found = find_mixtures(model)
    for one in found:
        put = partial(_editor(model.graph, one).add, dtype=one.hidden.dtype)
        whole = _editor(model.graph, one).constant
        (tokens, width), (_, rows, _), inner = sizes(one.hidden), sizes(one.gate_up), sizes(one.down)[2]
        each = tokens, one.active
        column = put("Unsqueeze", one.hidden, whole([1, 3]), shape=(tokens, 1, width, 1))
        matrices = put("Gather", one.gate_up, one.chosen, shape=(*each, rows, width), axis=0)
        both = put("MatMul", matrices, column, shape=(*each, rows, 1))
        both = put("Reshape", both, whole([0, 0, -1, 2]), shape=(*each, inner, 2))
        gate, up = (put("Gather", both, whole([half]), shape=(*each, inner, 1), axis=3) for half in (0, 1))
        gated = put("Mul", gate, put("Sigmoid", gate, like=gate), like=gate)
        share = put("Unsqueeze", one.weights, whole([2, 3]), shape=(*each, 1, 1))
        gated = put("Mul", put("Mul", gated, up, like=gate), share, like=gate)
        matrices = put("Gather", one.down, one.chosen, shape=(*each, width, inner), axis=0)
        outputs = put("MatMul", matrices, gated, shape=(*each, width, 1))
        output = put("ReduceSum", outputs, whole([1, 3]), shape=(tokens, width), keepdims=0)
        replace(model.graph, {one.output: output})
    RemoveUnusedNodesPass()(model)
    return len(found)


def _every_expert(
    op: Any, hidden: Any, chosen: Any, weights: Any, numbers: Any, gate_up: Any, down: Any, by_turns: Any, laid: Any
) -> Any:
    def total(values: Any, axis: int) -> Any:
        """A sum, of 16 bits in float32 between casts."""
        found = op.ReduceSum(OrValue([op.Cast(values), values]), [axis], keepdims=0)
        return OrValue([op.Cast(found), found])

    among = op.Cast(op.Equal(op.Unsqueeze(chosen, [-1]), numbers))
    share = total(op.Mul(among, op.Unsqueeze(weights, [-1])), 1)
    both = op.Reshape(op.MatMul(gate_up, op.Transpose(hidden, perm=[1, 0])), by_turns)
    gate, up = op.Split(both, axis=2, num_outputs=2, _outputs=2)
    inner = op.Reshape(op.Mul(op.Mul(gate, op.Sigmoid(gate)), up), laid)
    inner = op.Mul(inner, op.Unsqueeze(op.Transpose(share, perm=[1, 0]), [1]))
    return op.Transpose(total(op.MatMul(down, inner), 0), perm=[1, 0])


def _last(node: ir.Node) -> bool:
    """Whether a node may end what :func:`_every_expert` writes."""
    return node.op_type == "Transpose" and producer(_uncast(node.inputs[0]), "ReduceSum") is not None


def _uncast(value: ir.Value | None) -> ir.Value | None:
    """What a value is before its type is changed."""
    cast = producer(value, "Cast")
    return value if cast is None else cast.inputs[0]


def _editor(graph: ir.Graph, one: Mixture) -> Editor:
    final = one.output.producer()
    if final is None:
        raise AssertionError("an output is computed")
    return Editor(graph, final)

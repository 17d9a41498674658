"""Mixtures of experts: every expert on all tokens, as exported, becomes the experts that each token chose.

For ONNX Runtime that is one node; in standard operators, the chosen experts' matrices are gathered for each token. Both
take the weights as they are stored, also in few bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter.pattern import OrValue, Pattern

from exporters.rewriting.edit import CONTRIB, Editor, constant, producer, replace, sizes
from exporters.rewriting.stacks import stack_of, stacks_of

IN_ONE_NODE = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""Types that ONNX Runtime computes a mixture in on a processor."""
ROUNDING = 4
"""Accuracy level of `QMoE` at which inputs are rounded to 8 bits, block by block; at 0 those of 4-bit weights stay."""
OF_FEW_BITS = {"expert_weight_bits", "block_size", "accuracy_level"}
"""Attributes that `QMoE` has and `MoE` has not."""


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
        _replace_by_node(model.graph, one, scores)
        done += 1
    RemoveUnusedNodesPass()(model)
    if done == every:
        return []
    why = "router, activation or type is not MoE's, or an earlier vtc exported them"
    return [f"{every - done} of {every} mixtures compute every expert: {why}"]


def _replace_by_node(graph: ir.Graph, one: Mixture, scores: ir.Value) -> None:
    both, down = stack_of(one.gate_up), stack_of(one.down)
    inputs: list[ir.Value | None] = [one.gate_up, None, one.down]
    how: dict[str, Any] = {}
    if both is not None and down is not None:
        inputs = [both.packed(graph), both.scales, None, down.packed(graph), down.scales]
        how = {"expert_weight_bits": both.bits, "block_size": both.block, "accuracy_level": ROUNDING}
    output = editor_at(graph, one).add(
        "QMoE" if how else "MoE",
        *(one.hidden, scores, *inputs),
        like=one.output,
        domain=CONTRIB,
        k=one.active,
        normalize_routing_weights=1,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        **how,
    )
    replace(graph, {one.output: output})


def round_no_inputs(model: ir.Model) -> int:
    """Have mixtures in few bits take their inputs as they are, which is slower, and exact to compare with.

    ``QMoE`` has no such kernel for 8 bits; there ``MoE`` gets the matrices that the numbers stand for.

    Returns
    -------
    int
        How many mixtures do so now.
    """
    found = [node for node in model.graph if node.op_type == "QMoE" and node.domain == CONTRIB]
    for node in found:
        if node.attributes.get_int("expert_weight_bits", 4) == 4:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
            continue
        editor = Editor(model.graph, node)
        floats = [stack.floats(editor) for stack in stacks_of(node)]
        known = {name: one for name, one in node.attributes.items() if name not in OF_FEW_BITS}
        exact = ir.Node(CONTRIB, "MoE", [*node.inputs[:2], floats[0], None, floats[1]], known.values(), num_outputs=1)
        exact.outputs[0].shape, exact.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        model.graph.insert_before(node, exact)
        replace(model.graph, {node.outputs[0]: exact.outputs[0]})
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


def editor_at(graph: ir.Graph, one: Mixture) -> Editor:
    """Puts nodes in where a mixture ends."""
    final = one.output.producer()
    if final is None:
        raise AssertionError("an output is computed")
    return Editor(graph, final)

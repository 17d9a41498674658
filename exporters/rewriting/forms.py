"""Rewrites a portable graph for one runtime, in place; weights stay where they are, and are not read."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from exporters.rewriting.attention import find_attention
from exporters.rewriting.edit import CONTRIB, producer
from exporters.rewriting.experts import fuse_mixtures
from exporters.rewriting.grouped import group_queries, unfit
from exporters.rewriting.norms import fuse_norms, fuse_residuals
from exporters.rewriting.operators import names
from exporters.rewriting.report import Form, Rewritten
from exporters.rewriting.rotary import fuse_rotary
from exporters.rewriting.standard import attend, raise_opset
from exporters.rewriting.vision import fuse_heads

NORM = {"ort": "SimplifiedLayerNormalization", "opset23": "RMSNormalization"}
"""Operator that an RMS norm becomes."""


def rewrite(model: ir.Model, form: Form, graph: str) -> Rewritten:
    """Rewrite a graph in place.

    It computes the same from inputs and to outputs of the same names.

    Parameters
    ----------
    model : ir.Model
        As exported; its weights may lie in a file beside it, and stay there.
    form : {"ort", "opset23"}
    graph : str
        Its name in the bundle, without the precision's suffix.
    """
    before, kinds = len(model.graph), _kinds(model.graph)
    cached = any(str(value.name).startswith("past_key_values.") for value in model.graph.inputs)
    in_place, left = False, list[str]()
    if cached and form == "ort":
        in_place, left = _decoder_for_ort(model)
    elif cached:
        left = _decoder_of_opset_23(model)
    else:
        left = _tower(model, form)
    RemoveUnusedNodesPass()(model)
    if any(node.domain == CONTRIB for node in model.graph):
        model.opset_imports[CONTRIB] = 1
    RemoveUnusedOpsetsPass()(model)
    NameFixPass()(model)
    fused = {kind: count for kind, count in (_kinds(model.graph) - kinds).items() if kind in names(form)}
    norms = sum(producer(node.inputs[0], "Sqrt") is not None for node in model.graph if node.op_type == "Reciprocal")
    if norms and (cached or fused):
        left.append(f"{norms} norms stay portable: what they take is of another type than their weight")
    return Rewritten(form, graph, fused, before, len(model.graph), in_place, left)


def _kinds(graph: ir.Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph)


def _decoder_for_ort(model: ir.Model) -> tuple[bool, list[str]]:
    """Whether the cache is in place now, and what stays."""
    found, unknown = find_attention(model.graph)
    left = unfit(model.graph, found, unknown)
    fuse_rotary(model, contrib=True)
    fuse_norms(model, NORM["ort"])
    in_place = bool(found) and not left
    if in_place:
        # What was found before reads values that rotations have replaced.
        group_queries(model.graph, find_attention(model.graph)[0])
        RemoveUnusedNodesPass()(model)
    fuse_residuals(model)
    return in_place, left + fuse_mixtures(model)


def _tower(model: ir.Model, form: Form) -> list[str]:
    """What stays of a vision tower, or of another graph without a cache."""
    reason = raise_opset(model) if form == "opset23" else ""
    if reason:
        return [reason]
    left = fuse_heads(model.graph, form)
    if names(form) & _kinds(model.graph).keys():
        fuse_norms(model, NORM[form])  # a selector's own scores are left as they are
    return left


def _decoder_of_opset_23(model: ir.Model) -> list[str]:
    """What stays."""
    reason = raise_opset(model)
    if reason:
        return [reason]
    fuse_rotary(model, contrib=False)
    fuse_norms(model, NORM["opset23"])
    return attend(model.graph, *find_attention(model.graph))

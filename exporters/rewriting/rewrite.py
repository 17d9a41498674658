"""Rewrites a portable graph for one runtime, in place; weights stay where they are, and are not read."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from exporters.rewriting.attention import find_attention
from exporters.rewriting.edit import CONTRIB
from exporters.rewriting.grouped import group_queries, unfit
from exporters.rewriting.norms import fuse_norms, fuse_residuals
from exporters.rewriting.report import Form, Rewritten
from exporters.rewriting.rotary import fuse_rotary


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
    before = len(model.graph)
    fused: dict[str, int] = {}
    left: list[str] = []
    in_place = False
    cached = any(str(value.name).startswith("past_key_values.") for value in model.graph.inputs)
    if form == "ort" and cached:
        in_place = _decoder_for_ort(model, fused, left)
    RemoveUnusedNodesPass()(model)
    if any(node.domain == CONTRIB for node in model.graph):
        model.opset_imports[CONTRIB] = 1
    RemoveUnusedOpsetsPass()(model)
    NameFixPass()(model)
    done = {name: count for name, count in fused.items() if count}
    return Rewritten(form, graph, done, before, len(model.graph), in_place, left)


def _decoder_for_ort(model: ir.Model, fused: dict[str, int], left: list[str]) -> bool:
    found, unknown = find_attention(model.graph)
    reasons = unfit(model.graph, found, unknown)
    fused["RotaryEmbedding"] = fuse_rotary(model, contrib=True)
    fused["SimplifiedLayerNormalization"] = fuse_norms(model, "SimplifiedLayerNormalization")
    left += reasons
    if not reasons:
        # Values that were replaced meanwhile are found anew.
        found, _ = find_attention(model.graph)
        fused["GroupQueryAttention"] = group_queries(model.graph, found)
    RemoveUnusedNodesPass()(model)
    skips = fuse_residuals(model)
    fused["SkipSimplifiedLayerNormalization"] = skips
    fused["SimplifiedLayerNormalization"] -= skips
    return not reasons

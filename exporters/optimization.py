"""Optimises a graph as PyTorch's exporter does: constants folded, layout operators simplified, repeats merged.

Of the exporter's rules, those are left out that never applied to a model here: for dropout, chains of ReLU, batch
normalisation, padded and quantised convolutions; and the one that makes a Split of two Slices, which tries all pairs of
slices for each node of a graph: half of the time of an export with hundreds of slices went into it.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    OutputFixPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass, onnx_fusions
from onnxscript.rewriter.rules import common

ROUNDS = 2
SHARED_ELEMENTS = 2**20
"""Constants up to this size are compared with each other; larger ones are weights."""
RULES = (
    common.mul_by_1_rule,
    common.add_0_rule,
    common.sub_0_rule,
    common.div_by_1_rule,
    common.two_reshapes_matmul_reshape_rule,
    common.one_reshape_matmul_reshape_rule,
    common.cast_constant_of_shape_rule,
    common.cast_constant_of_shape_without_value_rule,
    common.collapse_slice_rule,
    common.collapse_slice2_rule,
    common.materialize_reshape_shape_rule,
    common.min_min_rule,
    common.max_max_rule,
    common.min_max_rule,
    common.max_min_rule,
    common.successive_clip_rule,
    common.cast_cast_rule,
    common.no_op_cast_rule,
    common.no_op_expand_rule,
    common.flatten_to_reshape_rule,
    common.reshape_reshape_rule,
    common.no_op_transpose_rule,
    common.transpose_transpose_rule,
    common.unsqueeze_unsqueeze_rule,
    common.squeeze_reshape_1d_rule,
    common.no_op_dynamic_scatter_nd_rule,
    common.no_op_static_scatter_nd_rule,
    common.remove_optional_bias_from_conv_rule,
    common.remove_optional_bias_from_gemm_rule,
)


def optimize(model: ir.Model) -> None:
    """Optimise a graph in place."""
    InlinePass()(model)
    for _ in range(ROUNDS):
        folded = fold_constants_ir(model, onnx_shape_inference=True, should_fold=_should_fold)
        rewritten = RewritePass(RULES)(model)
        RemoveUnusedNodesPass()(model)
        if not (folded.modified or rewritten.modified):
            break
    for tidy in (
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        # Layers share constants of a layout; merged, what is computed of them is computed once.
        DeduplicateInitializersPass(size_limit=SHARED_ELEMENTS),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedOpsetsPass(),
        OutputFixPass(),
        NameFixPass(),
    ):
        tidy(model)
    onnx_fusions.fuse(model)  # from operator set 23 on


def _should_fold(node: ir.Node) -> bool | None:
    """Fold a reshaped weight whatever its size, as a transposed one is; leave the rest to the exporter's own rules."""
    weight = node.inputs[0] if node.op_type == "Reshape" and node.domain == "" else None
    return True if weight is not None and weight.const_value is not None and len(weight.uses()) == 1 else None

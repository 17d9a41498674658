"""Norms: six nodes of an RMS norm become one, and one with the residual addition before it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase, RewriteRuleSet, pattern

from exporters.rewriting.edit import CONTRIB, Editor, commuted, number, producer, replace, sizes

FLOAT = ir.DataType.FLOAT


class _RmsNorm(RewriteRuleClassBase):
    """x / sqrt(mean(x ** 2) + epsilon) * weight, as exported; also computed in float32 between casts.

    Parameters
    ----------
    kind : str
        Operator to write.
    weight_first : bool
        Which way round the product with the weight is.
    """

    def __init__(self, kind: str, weight_first: bool) -> None:
        super().__init__(f"{kind}, weight {'first' if weight_first else 'last'}")
        self.kind, self.weight_first = kind, weight_first

    def pattern(self, op: Any, x: Any, weight: Any, epsilon: Any, narrow: Any) -> Any:
        wide = pattern.OrValue([op.Cast(x, to=FLOAT), x])
        mean = op.ReduceMean(op.Pow(wide, 2.0), [-1], keepdims=1)
        normal = op.Mul(wide, op.Reciprocal(op.Sqrt(op.Add(mean, epsilon))))
        normal = pattern.OrValue([op.Cast(normal, to=narrow), normal])
        return op.Mul(weight, normal) if self.weight_first else op.Mul(normal, weight)

    def check(self, op: Any, *_: Any, **values: Any) -> MatchResult:
        result = MatchResult()
        x, weight, epsilon = (values[name] for name in ("x", "weight", "epsilon"))
        if number(epsilon) is None:
            return result.fail("epsilon is no constant")
        if len(sizes(weight)) != 1 or sizes(x)[-1:] != sizes(weight):
            return result.fail("the weight is not one number for each channel")
        if weight.dtype != x.dtype:
            return result.fail("the weight is of another type than what is normalised")
        return result

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, epsilon: ir.Value, **_: Any) -> Any:
        return getattr(op, self.kind)(x, weight, axis=-1, epsilon=number(epsilon), stash_type=1)


def fuse_norms(model: ir.Model, kind: str) -> None:
    """Replace RMS norms by one node each.

    Parameters
    ----------
    model : ir.Model
    kind : {"SimplifiedLayerNormalization", "RMSNormalization"}
        ONNX Runtime's operator, which it registers in the standard domain, or that of operator set 23. Where the norm
        is computed in float32 of float16 values, the two round after the product with the weight, not before.
    """
    make: Any = _RmsNorm.rule
    RewriteRuleSet([make(kind, first) for first in (True, False)]).apply_to_model(model)


def fuse_residuals(model: ir.Model) -> None:
    """Let a residual addition and the RMS norm after it be one SkipSimplifiedLayerNormalization."""
    for norm in list(model.graph):
        addition = producer(norm.inputs[0], "Add") if norm.op_type == "SimplifiedLayerNormalization" else None
        if addition is None:
            continue
        total, weight = addition.outputs[0], norm.inputs[1]
        # It adds what is of one shape, (B, S, E), and nothing that is repeated.
        (left, right), _ = commuted(addition) or ((None, None), None)
        if left is None or right is None or len(sizes(total)) != 3 or not sizes(left) == sizes(right) == sizes(total):
            continue
        editor = Editor(model.graph, addition)
        normal, _, _, kept = editor.add_all(
            "SkipSimplifiedLayerNormalization",
            *(left, right, weight),
            likes=[norm.outputs[0], None, None, total],
            domain=CONTRIB,
            epsilon=norm.attributes.get_float("epsilon", 1e-5),
        )
        replace(model.graph, {norm.outputs[0]: normal, total: kept})
        model.graph.remove([norm, addition], safe=True)

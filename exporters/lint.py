"""Refuses a graph that a runtime could not take, before anything is built from it.

Rules are small functions from a graph to findings. Some hold for every export: standard operators only, no shape that
depends on data, constant K, a constant number of visual tokens. The others are a target's, and read
:mod:`exporters.targets`. `docs/targets.md` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from exporters.graph_view import GraphView, Placed, attribute, label
from exporters.target import Operators, Target
from exporters.targets import PORTABLE
from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError, InputError

DATA_DEPENDENT = {
    "NonZero": "gather with constant-size indices instead",
    "Compress": "gather with constant-size indices instead",
    "Unique": "precompute it outside of the graph",
    "NonMaxSuppression": "run it outside of the graph",
    "Loop": "unroll it: counts are constants here",
    "Scan": "unroll it: counts are constants here",
    "If": "compute both and select with Where",
    "DFT": "multiply by a constant DFT or DCT matrix",
    "SequenceAt": "use tensors",
    "SequenceConstruct": "use tensors",
    "SplitToSequence": "use tensors",
}
"""Operators whose output shape depends on data, or that need control flow, and what to do about them."""

INSTEAD = {
    "Attention": "decompose it into MatMul and Softmax",
    "RMSNormalization": "decompose it into Pow, ReduceMean, Sqrt and Mul",
    "RotaryEmbedding": "decompose it into Cos, Sin, Mul and Add",
    "TensorScatter": "decompose it into Concat or ScatterElements",
    "Swish": "decompose it into Sigmoid and Mul",
    "DynamicQuantizeLinear": "quantise with constant scales (QuantizeLinear, DequantizeLinear)",
    "MatMulInteger": "use MatMul between DequantizeLinear and QuantizeLinear",
    **dict.fromkeys(("MoE", "QMoE"), "take the portable graph, which computes every expert"),
    "ConvInteger": "use Conv between DequantizeLinear and QuantizeLinear",
    "QLinearMatMul": "use MatMul between DequantizeLinear and QuantizeLinear",
    "QLinearConv": "use Conv between DequantizeLinear and QuantizeLinear",
}
"""What to do about operators that a target has not."""

STANDARD_DOMAINS = {"", "ai.onnx"}

CONSTANT_INPUTS = {
    **dict.fromkeys(("CumSum", "OneHot", "Squeeze", "Unsqueeze"), 1),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"), 1),
    **dict.fromkeys(("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"), 1),
}
"""Operators with an input that TensorRT must know when it builds, and which input that is."""

NUMBER_OF = {
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "INT8": "int8",
    "INT4": "int4",
    "FLOAT8E4M3FN": "fp8",
    "FLOAT4E2M1": "nvfp4",
}
"""Numeric format that a target must have for tensors of a type."""

PLAIN_TYPES = {"FLOAT", "DOUBLE", "INT32", "INT64", "BOOL"}
"""Types that every target takes, if only as shapes and indices; DOUBLE is computed in float32."""


@dataclass(frozen=True)
class Finding:
    """Something in a graph that would not deploy: where it is and what to do."""

    graph: str
    node: str
    problem: str

    def __str__(self) -> str:
        return f"{self.graph}: {self.node}: {self.problem}"


Found = Iterator[tuple[str, str]]
"""Where, and what is wrong and what to do."""


def lint(
    path: Path,
    *,
    max_opset: int = 20,
    constant_tokens: bool = False,
    zero_points: bool = False,
    target: Target | None = None,
) -> list[Finding]:
    """Check one exported graph.

    Parameters
    ----------
    path : Path
        ONNX file; external weights are not read.
    max_opset : int
        Highest opset allowed where no target is named.
    constant_tokens : bool
        Require every output axis but the first to be a constant, as a vision encoder with a fixed budget has.
    zero_points : bool
        Whether values may be quantised around a zero point where no target is named: runtimes on processors take it.
    target : Target or None
        What the graph is for; without one, :data:`exporters.targets.PORTABLE` is asked for.

    Returns
    -------
    list of Finding
        Empty for a graph that deploys.

    Raises
    ------
    BundleError
        If it cannot be read.
    """
    try:
        graph = GraphView(path.name, onnx.load(path, load_external_data=False))
    except (OSError, DecodeError) as error:
        raise BundleError(f"{path}: is not an ONNX graph ({error}); export it again") from None
    found = [one for rule in PROMISES for one in rule(graph)]
    if constant_tokens:
        found += _constant_tokens(graph)
    portable = replace(PORTABLE, zero_points=zero_points)
    operators, whom = (target.operators, target.called) if target else (portable, "not for every target")
    seen = {place for place, _ in found}  # one finding a node is enough
    for limit in LIMITS:
        found += [one for one in limit(graph, operators, whom) if one[0] not in seen]
    found += [*_opset(graph, max_opset, target), *(_types(graph, target) if target else ())]
    return [Finding(path.name, place, problem) for place, problem in found]


def lint_bundle(manifest: Manifest, precision: str, target: Target) -> list[Finding]:
    """Check all graphs of a bundle in one precision for a target.

    Parameters
    ----------
    manifest : Manifest
        May be one that is not published yet.
    precision : str
    target : Target

    Raises
    ------
    InputError
        If the bundle holds no such precision, or the target does not take it.
    """
    manifest.check_precision(precision)
    target.check(precision)
    return [
        finding
        for name in manifest.graphs
        for finding in lint(
            manifest.graph(name, precision),
            constant_tokens=name.startswith(("vision_encoder", "text_reader")),
            target=target,
        )
    ]


def check_bundle(manifest: Manifest, precision: str, target: Target) -> None:
    """Make sure that a target takes a bundle.

    Raises
    ------
    InputError
        If it does not: the first finding, and how many there are.
    """
    findings = lint_bundle(manifest, precision, target)
    if findings:
        raise InputError(f"target '{target.name}' cannot take {precision} of this bundle: {summary(findings)}")


def summary(findings: Sequence[Finding]) -> str:
    """The first finding, and how many there are."""
    more = len(findings) - 1
    return f"{findings[0]}" + (f" (and {more} more)" if more else "")


def _standard_operators(graph: GraphView) -> Found:
    for one in graph.nodes:
        if one.node.domain not in STANDARD_DOMAINS:
            todo = INSTEAD.get(one.node.op_type, "use standard ones")
            yield str(one), f"operators of domain {one.node.domain} are not standard ONNX; {todo}"
    if graph.model.functions:
        yield "graph", f"{len(graph.model.functions)} local functions; inline them"


def _shapes_from_data(graph: GraphView) -> Found:
    for one in _standard(graph):
        if one.node.op_type in DATA_DEPENDENT:
            yield str(one), f"its shape depends on data, or it is control flow; {DATA_DEPENDENT[one.node.op_type]}"


def _constant_k(graph: GraphView) -> Found:
    for one in _standard(graph):
        if one.node.op_type == "TopK" and len(one.node.input) > 1 and not graph.is_constant(one.node.input[1]):
            name = one.node.input[1]
            maker = graph.producer(name)
            whence = f"computed by {label(maker)}" if maker else "an input of the graph"
            yield (
                str(one),
                f"K ({name}) is {whence}; make it a constant: the budget is fixed when the graph is exported",
            )


def _constant_tokens(graph: GraphView) -> Found:
    for output in graph.model.graph.output:
        for axis, dimension in enumerate(output.type.tensor_type.shape.dim):
            if axis > 0 and not dimension.HasField("dim_value"):
                yield (
                    f"output {output.name}",
                    f"axis {axis} is dynamic; a fixed-budget selector keeps a constant number of tokens",
                )


PROMISES: tuple[Callable[[GraphView], Found], ...] = (_standard_operators, _shapes_from_data, _constant_k)
"""What every export promises, whatever it is for."""


def _absent(graph: GraphView, operators: Operators, whom: str) -> Found:
    for one in _standard(graph):
        if one.node.op_type in operators.absent:
            todo = INSTEAD.get(one.node.op_type, "write it with other operators")
            yield str(one), f"{whom}: {one.node.op_type} is not taken; {todo}"


def _topk_limit(graph: GraphView, operators: Operators, whom: str) -> Found:
    for one in _standard(graph):
        if one.node.op_type != "TopK":
            continue
        if len(one.node.input) > 1:
            values = graph.values(one.node.input[1])
        else:
            k = attribute(one.node, "k")
            values = None if k is None else np.array([k.i])
        if values is not None and values.size and values[0] > operators.max_topk_k:
            limit = f"{whom}: K is {int(values[0])}, and at most {operators.max_topk_k} are taken"
            yield str(one), f"{limit}; keep fewer tokens, or rank fewer at a time"


def _topk_sorted(graph: GraphView, operators: Operators, whom: str) -> Found:
    for one in _standard(graph):
        ordered = attribute(one.node, "sorted") if one.node.op_type == "TopK" else None
        if ordered and not ordered.i:
            yield str(one), f"{whom}: TopK that does not sort is not taken; set sorted to 1"


def _cumsum_types(graph: GraphView, operators: Operators, whom: str) -> Found:
    for one in _standard(graph):
        kind = graph.element_type(one.node.input[0]) if one.node.op_type == "CumSum" else ""
        if kind and kind not in operators.cumsum_types:
            yield (
                str(one),
                f"{whom}: sums {kind}, and only floats are taken; cast to float32 before it and back after it, "
                "or multiply by a triangular matrix",
            )


def _einsum_ellipsis(graph: GraphView, operators: Operators, whom: str) -> Found:
    for one in _standard(graph):
        equation = attribute(one.node, "equation") if one.node.op_type == "Einsum" else None
        if equation and b"..." in equation.s and not operators.einsum_ellipsis:
            written = equation.s.decode(errors="replace")
            yield str(one), f"{whom}: '{written}' has an ellipsis, which is not taken; name every axis, or use MatMul"


def _scatter_reduction(graph: GraphView, operators: Operators, whom: str) -> Found:
    for one in _standard(graph):
        kind = one.node.op_type
        reduction = attribute(one.node, "reduction") if kind in ("ScatterElements", "ScatterND") else None
        if reduction and reduction.s not in (b"", b"none") and kind not in operators.scatter_reductions:
            name = reduction.s.decode(errors="replace")
            yield str(one), f"{whom}: reduction '{name}' is not taken; multiply by a one-hot matrix instead"


def _constant_inputs(graph: GraphView, operators: Operators, whom: str) -> Found:
    for one in _standard(graph):
        index = CONSTANT_INPUTS.get(one.node.op_type)
        name = one.node.input[index] if index is not None and len(one.node.input) > index else ""
        if name and not graph.is_constant(name):
            yield str(one), f"input {name} is computed, and must be known when an engine is built; make it a constant"


def _symmetric(graph: GraphView, operators: Operators, whom: str) -> Found:
    todo = "quantise symmetrically, to signed integers without a zero point"
    for one in _standard(graph):
        if operators.zero_points or one.node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        kinds = {graph.element_type(name) for name in (*one.node.input[:1], *one.node.input[2:3], *one.node.output)}
        unsigned = sorted(kind for kind in kinds if kind.startswith("UINT"))
        if unsigned:
            yield str(one), f"is quantised to {unsigned[0]}, which no target takes; {todo}"
        elif len(one.node.input) > 2 and one.node.input[2]:
            zeros = graph.values(one.node.input[2])
            if zeros is not None and zeros.astype("float32").any():
                yield str(one), f"has a zero point, which no target takes; {todo}"


LIMITS: tuple[Callable[[GraphView, Operators, str], Found], ...] = (
    _absent,
    _topk_limit,
    _topk_sorted,
    _cumsum_types,
    _einsum_ellipsis,
    _scatter_reduction,
    _constant_inputs,
    _symmetric,
)
"""What some release does not take of the operators."""


def _opset(graph: GraphView, max_opset: int, target: Target | None) -> Found:
    ceiling = max_opset
    if target:
        four_bits = any(tensor.data_type == TensorProto.INT4 for tensor in graph.tensors)
        ceiling = target.ceiling("int4" if four_bits else "")
    for opset in graph.model.opset_import:
        if opset.domain in STANDARD_DOMAINS and opset.version > ceiling:
            whose = f", the highest that {target.called} takes" if target else ""
            yield "graph", f"opset {opset.version} is above {ceiling}{whose}; export with --opset {ceiling}"


def _types(graph: GraphView, target: Target) -> Found:
    """Each type that the target has not, once."""
    told = set()
    for place, kind in _typed(graph):
        if kind in told or kind in PLAIN_TYPES:
            continue
        number = NUMBER_OF.get(kind)
        if number is None:
            told.add(kind)
            yield place, f"is of type {kind}, which no target computes with; cast it where it is made"
        elif target.lacks(number):
            told.add(kind)
            yield place, f"is of type {kind}; {target.lacks(number)}"


def _typed(graph: GraphView) -> Iterator[tuple[str, str]]:
    model = graph.model.graph
    edges = {value.name for value in (*model.input, *model.output)}
    for tensor in graph.tensors:
        yield f"tensor {tensor.name}", TensorProto.DataType.Name(tensor.data_type)
    for name, kind in graph.declared.items():
        if not (kind == "UINT8" and name in edges):  # TensorRT has UINT8 for inputs and outputs
            yield f"tensor {name}", kind
    for one in _standard(graph):
        to = attribute(one.node, "to")
        if one.node.op_type == "Cast" and to is not None and one.node.output[0] not in edges:
            yield str(one), TensorProto.DataType.Name(to.i)


def _standard(graph: GraphView) -> Iterator[Placed]:
    """Nodes whose operators are ONNX's own."""
    return (one for one in graph.nodes if one.node.domain in STANDARD_DOMAINS)

"""Refuses a graph that a runtime could not take, before anything is built from it.

What every export promises: standard operators only, one opset, no shape that depends on data, and a constant number
of visual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from exporters.targets import Target
from vtc.bundle import Manifest

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

FUSED_ONLY_NEWER = {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}
"""Fused operators of opset 23 and later, which embedded runtimes lack; exports decompose them."""

STANDARD_DOMAINS = {"", "ai.onnx"}


@dataclass(frozen=True)
class Finding:
    """Something in a graph that would not deploy: where it is and what to do."""

    graph: str
    node: str
    problem: str

    def __str__(self) -> str:
        return f"{self.graph}: {self.node}: {self.problem}"


def lint(path: Path, *, max_opset: int = 20, constant_tokens: bool = False) -> list[Finding]:
    """Check one exported graph.

    Parameters
    ----------
    path : Path
        ONNX file; external weights are not read.
    max_opset : int
        Highest opset the runtimes in mind take.
    constant_tokens : bool
        Require every output axis but the first to be a constant, as a vision encoder with a fixed budget has.

    Returns
    -------
    list of Finding
        Empty for a graph that deploys.
    """
    model = onnx.load(path, load_external_data=False)
    found: list[Finding] = []
    for opset in model.opset_import:
        if opset.domain in STANDARD_DOMAINS and opset.version > max_opset:
            found.append(
                Finding(
                    path.name, "graph", f"opset {opset.version} is above {max_opset}; export with --opset {max_opset}"
                )
            )
        elif opset.domain not in STANDARD_DOMAINS and any(node.domain == opset.domain for node in model.graph.node):
            found.append(Finding(path.name, "graph", f"operators of domain {opset.domain} are not standard ONNX"))
    if model.functions:
        found.append(Finding(path.name, "graph", f"{len(model.functions)} local functions; inline them"))
    for node in model.graph.node:
        if node.op_type in DATA_DEPENDENT:
            found.append(Finding(path.name, f"{node.op_type} {node.name}", DATA_DEPENDENT[node.op_type]))
        elif node.op_type in FUSED_ONLY_NEWER:
            found.append(Finding(path.name, f"{node.op_type} {node.name}", "decompose it: embedded runtimes lack it"))
    if constant_tokens:
        for output in model.graph.output:
            for axis, dimension in enumerate(output.type.tensor_type.shape.dim):
                if axis > 0 and not dimension.HasField("dim_value"):
                    problem = f"axis {axis} is dynamic; a fixed-budget selector keeps a constant number of tokens"
                    found.append(Finding(path.name, f"output {output.name}", problem))
    return found


def lint_bundle(manifest: Manifest, precision: str, target: Target) -> list[Finding]:
    """Check all graphs of a bundle in one precision for a target."""
    return [
        finding
        for name, paths in manifest.graphs.items()
        for finding in lint(
            manifest.file(paths[precision]),
            max_opset=target.max_opset,
            constant_tokens=name.startswith("vision_encoder"),
        )
    ]

"""What of a narrow graph computes in float32 all the same, and how far the rest is off, value by value.

Softmax and what is added to its scores always do: masks are as low as the type goes. Norms do by their own definition.
And so does whatever would overflow on samples, whether it comes in or goes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto

from exporters.graph_spec import SourceModule
from exporters.precision.floats import NARROW, cast_nodes_to_float32, element_types
from exporters.precision.probe import Reached, measure, probe
from vtc.data.samples import Sample
from vtc.errors import InputError, ParityError

HIGHEST = {"fp16": 65504.0, "bf16": 3.3895e38}
HEADROOM = 4.0
"""How much more than on samples a value may come to before it overflows."""


@dataclass(frozen=True)
class Protected:
    """A narrow graph, made safe.

    Attributes
    ----------
    model : ModelProto
    overflowing : dict of value name to Reached
        What would have come within `HEADROOM` of overflowing.
    reached : dict of value name to Reached
        What was looked at.
    """

    model: ModelProto
    overflowing: dict[str, Reached]
    reached: dict[str, Reached]


def protect(
    model: ModelProto,
    base: str,
    sources: Sequence[SourceModule],
    samples: Sequence[Sample],
    scratch: Path,
) -> Protected:
    """Move what overflows on samples to float32.

    Parameters
    ----------
    model : ModelProto
        Not changed.
    base : str
        ``fp16`` or ``bf16``.
    sources : sequence of (model, module)
        What the graph is made of; nothing leaves the graph as it is but for softmax.
    samples : sequence of Sample
    scratch : Path
        For probes; beside the weights of a graph that does not hold them itself.

    Raises
    ------
    InputError
        If keys or values overflow: a cache of that type cannot hold them.
    ParityError
        If something overflows all the same.
    """
    kind, softmax = NARROW[base], _softmax(model)
    safe = _lifted(model, kind, softmax)
    if not sources:
        return Protected(safe, {}, {})
    reached = measure(probe(safe, kind), sources, samples, scratch)
    limit = HIGHEST[base] / HEADROOM
    moving = _of_data(model) - softmax
    overflowing = {name: one for name, one in reached.items() if one.largest > limit and name in moving}
    for name, one in overflowing.items():
        if name.startswith("present.") and one.largest > HIGHEST[base]:
            raise InputError(
                f"{name} reaches {one.largest:.3g}, which a {base} cache cannot hold; give --precision fp32 or bf16"
            )
    if overflowing:
        touched = {
            name
            for node in model.graph.node
            if overflowing.keys() & {*node.input, *node.output}
            for name in node.output
        }
        safe = _lifted(model, kind, softmax | touched)
        reached = measure(probe(safe, kind), sources, samples, scratch)
    # ONNX Runtime computes much of float16 in float32 on a CPU, and would not notice.
    broken = [name for name, one in reached.items() if not math.isfinite(one.difference)]
    if broken:
        raise ParityError(
            f"{base} graphs overflow at {broken[0]} and {len(broken) - 1} more values; nothing was published"
        )
    return Protected(safe, overflowing, reached)


def report(graph: str, model: ModelProto, reached: Mapping[str, Reached]) -> list[dict[str, Any]]:
    """What values reach and how far they are off, worst first; plain JSON data.

    A difference is given in itself and relative to the largest magnitude of its value.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    rows = []
    for name, one in reached.items():
        if name in makers:
            node = makers[name]
            notes = {entry.key: entry.value for entry in node.metadata_props}
            rows.append(
                {
                    "graph": graph,
                    "value": name,
                    "operator": node.op_type,
                    "module": _module(notes.get("namespace", "")),
                    "largest": _number(one.largest),
                    "difference": _number(one.difference),
                    "relative": _number(one.difference / one.largest if one.largest else 0.0),
                }
            )
    return sorted(rows, key=worst_first)


def worst_first(row: Mapping[str, Any]) -> float:
    """What to sort a report's rows by."""
    return -math.inf if row["relative"] is None else -row["relative"]


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None  # JSON has no infinity


def _module(namespace: str) -> str:
    """The innermost module of ``: class/name: class/.../operator: target``."""
    parts = [part.split(": ")[0] for part in namespace.split("/")]
    return parts[-2] if len(parts) > 1 else ""


def _lifted(model: ModelProto, kind: int, chosen: set[str]) -> ModelProto:
    safe = deepcopy(model)
    cast_nodes_to_float32(safe, kind, chosen)
    return safe


def _softmax(model: ModelProto) -> set[str]:
    """Results of softmax, and of the addition of a mask before it."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = set()
    for node in model.graph.node:
        if node.op_type == "Softmax":
            found.add(node.output[0])
            before = makers.get(node.input[0])
            if before is not None and before.op_type == "Add":
                found.add(before.output[0])
    return found


def _of_data(model: ModelProto) -> set[str]:
    """Values that depend on what floats go in, unlike masks, which are as low as the type goes on purpose."""
    types = element_types(model)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    found = {value.name for value in model.graph.input if types[value.name] in floats}
    for node in model.graph.node:
        if node.op_type != "Shape" and found & set(node.input):
            found |= {name for name in node.output if types.get(name) in floats}
    return found

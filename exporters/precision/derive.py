"""Graphs of every precision that is asked for, made of those exported in the precision's base.

One export from PyTorch serves a base and all quantised precisions of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from exporters.copies import DTYPES
from exporters.graph_spec import SourceModule
from exporters.precision import Precision
from exporters.precision.calibration import ranges
from exporters.precision.experts import expert_stacks, store_experts
from exporters.precision.floats import NARROW, cast_graph_to_float32
from exporters.precision.protect import protect, report, worst_first
from exporters.precision.quantize import (
    Rounded,
    embedding_table,
    linear_layers,
    linear_weights,
    quantize,
    vision_layers,
)
from exporters.precision.tuning import Tuning, tuned
from exporters.precision.weights import Chosen, choose, table
from exporters.steps import add_steps, step_rows
from exporters.writing import external_data, save_graph
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.files import link_or_copy
from vtc.progress import Report


@dataclass(frozen=True)
class Exported:
    """What graphs are derived from.

    Attributes
    ----------
    base : str
    raw : dict of graph name to Path
        As exported, in the directory where derived ones go.
    sources : dict of graph name to list of (model, module)
        See :func:`exporters.graphs.source_modules`.
    models : sequence of CompressedModel
        Whose linear layers are quantised.
    samples : sequence of Sample
        What values are measured on.
    calibration : sequence of Sample
        What weights are rounded by; without any, to the nearest.
    tuning : int
        Steps in which scales are learned on these samples.
    progress : callable
    """

    base: str
    raw: Mapping[str, Path]
    sources: Mapping[str, Sequence[SourceModule]]
    models: Sequence[CompressedModel]
    samples: Sequence[Sample]
    calibration: Sequence[Sample]
    tuning: int
    progress: Report


@dataclass
class Derived:
    """What was derived from one base.

    Attributes
    ----------
    paths : dict of precision to dict of graph name to Path
    safe : dict of graph name to Path
        The base's graphs, whether it is asked for or not.
    stand_ins : dict of precision to dict of graph name to Path
        Graphs that compute in float32 what the precision's own do: where these cannot be run everywhere, rounding after
        each step, and where activations are rounded, without.
    layers : dict of precision to dict of graph name to tuple of Rounded
    reached : dict of precision to dict of module name to float
        Of layers whose input is rounded, its largest magnitude.
    weights : dict of precision to dict of name to Chosen
    notes : dict of precision to JSON data
        What computes in float32 and how far values are off; how weights were quantised, and which.
    """

    paths: dict[str, dict[str, Path]] = field(default_factory=dict)
    safe: dict[str, Path] = field(default_factory=dict)
    stand_ins: dict[str, dict[str, Path]] = field(default_factory=dict)
    layers: dict[str, dict[str, tuple[Rounded, ...]]] = field(default_factory=dict)
    reached: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, dict[str, Chosen]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def derive(source: Exported, precisions: Sequence[Precision]) -> Derived:
    """Make the graphs of a base's precisions.

    Parameters
    ----------
    source : Exported
    precisions : sequence of Precision
        All of this base.

    Raises
    ------
    VtcError
        If a cache cannot hold what the model puts into it.
    """
    derived = Derived()
    quantised = [one for one in precisions if one.stored]
    adapter, dtype = source.models[0].adapter, DTYPES[source.base]
    linears = linear_weights(adapter, dtype, head=any(one.head for one in quantised)) if quantised else {}
    stacks = expert_stacks(adapter, dtype) if any(one.experts for one in quantised) else {}
    derived.weights = choose(source.models, quantised, source.calibration, source.progress) if quantised else {}
    tunings: dict[str, Tuning] = {}
    for one in quantised if source.tuning else ():
        if one.activations != "all":
            how = source.calibration, source.tuning, source.progress
            learned = tuned(source.models, derived.weights[one.name], *how)
            derived.weights[one.name], tunings[one.name] = learned
    derived.reached = _ranges(source, precisions)
    safe = dict(source.raw) if source.base == "fp32" else _protected(source, derived)
    derived.safe = safe
    for one in precisions:
        derived.paths[one.name] = {}
        if one.stored:
            chosen = derived.weights[one.name]
            weights = {name: layer.small for name, layer in chosen.items()}
            tables = embedding_table(adapter, dtype, weights)
            method = "gptq" if source.calibration and one.activations != "all" else "nearest"
            derived.notes[one.name] = {"base": source.base, "method": method, "graphs": {}, "layers": table(chosen)}
            if one.name in tunings:
                derived.notes[one.name]["tuning"] = asdict(tunings[one.name])
        for done, (name, path) in enumerate(safe.items()):
            source.progress(f"writing {one.name} graphs", done, len(safe))
            out = path.with_name(f"{name}{one.suffix}.onnx")
            derived.paths[one.name][name] = out
            if one.stored:
                model = onnx.load(path)
                found = quantize(model, one, linears, weights, derived.reached[one.name], tables)
                experts, whole = store_experts(model, stacks, weights) if one.experts else (0, 0)
                counts = {"weights": found.weights + experts, "left": found.left + whole, "joined": found.joined}
                derived.notes[one.name]["graphs"][name] = counts
                derived.layers.setdefault(one.name, {})[name] = found.layers
                save_graph(ir.from_proto(model), out)
            elif out != path:
                _publish(path, out)
            if one.activations and one.base == "fp32":
                derived.stand_ins.setdefault(one.name, {})[name] = out
            elif one.activations or one.base == "bf16":
                stand_in = path.with_name(f".{name}{one.suffix}_stand_in.onnx")
                model = onnx.load(out, load_external_data=False)
                cast_graph_to_float32(model, NARROW[one.base], rounding=not one.activations)
                onnx.save(model, stand_in)
                derived.stand_ins.setdefault(one.name, {})[name] = stand_in
        source.progress(f"writing {one.name} graphs", len(safe), len(safe))
    if step_rows(adapter.facts.decoder):
        _add_steps(derived)
    return derived


def _add_steps(derived: Derived) -> None:
    """Write graphs for steps of all that was derived; none is looked at layer by layer, as their segments' own are."""
    for paths in (derived.safe, *derived.paths.values(), *derived.stand_ins.values()):
        add_steps(paths)
    for name, layers in derived.layers.items():
        layers |= {graph: () for graph in derived.paths[name] if graph not in layers}


def _ranges(source: Exported, precisions: Sequence[Precision]) -> dict[str, dict[str, float]]:
    """For each precision, what the inputs of layers reach that it rounds."""
    adapter = source.models[0].adapter
    seeing = vision_layers(adapter)
    found = {
        one.name: {
            name: layer for name, layer in linear_layers(adapter) if one.of_layer(vision=name in seeing).activations
        }
        for one in precisions
    }
    layers = {name: layer for of in found.values() for name, layer in of.items()}
    samples = source.calibration or source.samples
    reached = ranges(source.models, samples, layers, source.progress) if layers else {}
    return {name: {layer: reached[layer] for layer in of if layer in reached} for name, of in found.items()}


def _protected(source: Exported, derived: Derived) -> dict[str, Path]:
    """Move to float32 what overflows, note what there is to note, and return the graphs' paths."""
    safe: dict[str, Path] = {}
    overflowing: list[dict[str, Any]] = []
    values: list[dict[str, Any]] = []
    for done, (name, path) in enumerate(source.raw.items()):
        source.progress(f"measuring {source.base} graphs", done, len(source.raw))
        model = onnx.load(path, load_external_data=False)
        scratch = path.with_name(f".{name}_probe.onnx")
        protected = protect(model, source.base, source.sources.get(name, ()), source.samples, scratch)
        overflowing += report(name, protected.model, protected.overflowing)
        values += report(name, protected.model, protected.reached)
        safe[name] = path.with_name(f".{name}_{source.base}_safe.onnx")
        onnx.save(protected.model, safe[name])  # its weights stay where they are
    source.progress(f"measuring {source.base} graphs", len(source.raw), len(source.raw))
    values.sort(key=worst_first)
    derived.notes[source.base] = {"float32": overflowing, "values": values}
    return safe


def _publish(path: Path, out: Path) -> None:
    """Put a graph under its own name, and its weights, where they are in a file beside it, under theirs."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                data = external_data(out)
                if not (data.exists() and data.samefile(path.with_name(entry.value))):
                    data.unlink(missing_ok=True)
                    link_or_copy(path.with_name(entry.value), data)
                entry.value = data.name
    onnx.save(model, out)

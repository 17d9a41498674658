"""A compressed model as ONNX graphs: standard operators, constant visual token count, dynamic batch and text length."""

from __future__ import annotations

import copy
import logging
import mmap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
)
from torch import Tensor, nn
from torch.export import Dim

from vtc.bundle import WEIGHTS
from vtc.compressed import CompressedModel
from vtc.decoder import DecoderSegment
from vtc.evaluate.selection import Selection
from vtc.facts import DecoderFacts
from vtc.runtime.decoder import BEFORE
from vtc.visual_tokens import TextEmbeddings

Heard = tuple[CompressedModel, nn.Module]
"""A PyTorch model, and the part of it that a graph is made of."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Types of the bases of :mod:`exporters.precision`."""
DEFAULT_OPSET = 20
SHARED_ELEMENTS = 2**20
"""Constants up to this size are compared with each other; larger ones are weights."""
EXTERNAL_DATA_BYTES = 2**25
"""Weights above this go into a file beside the graph.

They are written there out of the model's own memory, and runtimes map the file into theirs; inside the graph, which
protobuf limits to 2 GiB, both cost copies of all weights.
"""
EXTERNAL_TENSOR_BYTES = 1024
"""Smaller ones stay in the graph even then: shapes and the like, which are to be read without the file."""
OWN_BLOCK_ELEMENTS = 2**16
"""Weights of a copy that are at least so large get memory of their own."""
_BLOCK = "block"
"""Attribute of a weight: the memory that it is in."""


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export.

    Attributes
    ----------
    name : str
        File stem inside the bundle's `onnx` directory, without the precision's suffix.
    module : nn.Module
    args : tuple
        Example inputs, batch 2.
    inputs, outputs : list of str
        Names in the graph; nested arguments are flattened.
    axes : nested like `args`
        For each tensor, axis number to the name of its dynamic dimension.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]
    axes: tuple[Any, ...] = field(default_factory=tuple)


class VisionGraph(nn.Module):
    """`pixel_values` to `image_features` and `keep_indices`; float32 outside whatever the precision inside.

    Where a selector looks at the questions, `text_embeds` and `text_mask` go in too.
    """

    def __init__(self, model: CompressedModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision = model.vision
        self.dtype = dtype

    def forward(
        self, pixel_values: Tensor, text_embeds: Tensor | None = None, text_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        text = None if text_embeds is None or text_mask is None else TextEmbeddings(text_embeds, text_mask)
        features, keep_indices = self.vision(pixel_values.to(self.dtype), text)
        return features.float(), keep_indices


class EmbedGraph(nn.Module):
    """`input_ids` to `inputs_embeds`, float32 outside."""

    def __init__(self, model: CompressedModel) -> None:
        super().__init__()
        self.embed_tokens = model.embed_tokens

    def forward(self, input_ids: Tensor) -> Tensor:
        embeds: Tensor = self.embed_tokens(input_ids)
        return embeds.float()


class SegmentGraph(nn.Module):
    """A decoder segment; float32 outside but for the cache, which is of the precision inside.

    Hidden states are float32 so that they cannot overflow on the way from one graph to the next.
    """

    def __init__(self, segment: DecoderSegment, dtype: torch.dtype) -> None:
        super().__init__()
        self.segment = segment
        self.dtype = dtype

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[tuple[Tensor, Tensor]],
        block_ids: Tensor | None = None,
        key_position_ids: Tensor | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor | None]:
        output, present, tapped = self.segment(
            hidden.to(self.dtype), attention_mask, position_ids, past, block_ids, key_position_ids
        )
        return output.float(), present, None if tapped is None else tapped.float()


class CutGraph(nn.Module):
    """A cut inside the decoder; hidden states are float32 outside whatever the precision inside."""

    def __init__(self, cut: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.cut = cut
        self.dtype = dtype

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        image_rows: Tensor,
        image_columns: Tensor,
        query_columns: Tensor,
        query_mask: Tensor,
        layout: Tensor,
        before: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept, kept_positions, keep_indices = self.cut(
            hidden.to(self.dtype),
            attention_mask,
            position_ids,
            image_rows,
            image_columns,
            query_columns,
            query_mask,
            layout,
            None if before is None else before.to(self.dtype),
        )
        return kept.float(), kept_positions, keep_indices


def extra_inputs(decoder: DecoderFacts) -> dict[str, bool]:
    """What a segment's graph may take beyond what every decoder's does, each (B, P + S), and whether this one does."""
    return {"block_ids": decoder.bidirectional != "none", "key_position_ids": decoder.window > 0}


def graph_specs(models: Sequence[CompressedModel], dtype: torch.dtype) -> list[GraphSpec]:
    """The graphs that make up a compressed model, in the order data meets them.

    Parameters
    ----------
    models : sequence of CompressedModel
        One for each layout of images that is served, which share all but the graphs that depend on it.
    dtype : torch.dtype
    """
    first = models[0]
    specs = [_vision_spec(model, suffix(number), dtype) for number, model in enumerate(models)]
    specs.append(
        GraphSpec(
            "embed_tokens",
            EmbedGraph(first),
            (torch.zeros(2, 7, dtype=torch.long),),
            ["input_ids"],
            ["inputs_embeds"],
            ({0: "batch_size", 1: "sequence_length"},),
        )
    )
    for number, (segment, spec) in enumerate(zip(first.segments, first.plan.segments, strict=True)):
        if spec.enters == "prune":
            specs += [
                prune_spec(selector_name(number) + suffix(layout), model.entrances[number], first.begins(number), dtype)
                for layout, model in enumerate(models)
            ]
        elif spec.enters != "same":
            specs.append(_selector_spec(first, number, spec.enters))
        specs.append(_segment_spec(first, number, segment, spec.layers, dtype))
    return specs


def suffix(layout: int) -> str:
    """What stands behind the names of graphs that are made for layout number `layout`."""
    return f"_{layout}" if layout else ""


def _vision_spec(model: CompressedModel, behind: str, dtype: torch.dtype) -> GraphSpec:
    facts = model.adapter.facts
    args: tuple[Tensor, ...] = (torch.zeros(2, *model.adapter.pixels.shape),)
    inputs, axes = ["pixel_values"], [{0: "batch_size"}]
    if model.reads_text:
        rows = 2 * model.plan.spans
        args = (*args, torch.zeros(rows, 5, facts.decoder.width), torch.ones(rows, 5, dtype=torch.long))
        inputs += ["text_embeds", "text_mask"]
        axes += [{0: "batch_size" if rows == 2 else "span_count", 1: "text_length"}] * 2
    outputs = ["image_features", "keep_indices"]
    return GraphSpec(f"vision_encoder{behind}", VisionGraph(model, dtype), args, inputs, outputs, tuple(axes))


def selection_spec(selection: Selection, images: int) -> GraphSpec:
    """Selection in front of the decoder as a graph of its own, for a fixed number of images: to measure it."""
    args = selection.example(images)
    axes: tuple[Any, ...] = tuple({} for _ in args)
    return GraphSpec("selection", selection, args, selection.inputs, ["features", "keep_indices"], (axes,))


def segment_name(model: CompressedModel, number: int) -> str:
    """File stem of a decoder segment's graph; a decoder in one piece has the name that other tools look for."""
    return "decoder_model_merged" if len(model.segments) == 1 else f"decoder_segment_{number}"


def selector_name(number: int) -> str:
    """File stem of the graph in front of decoder segment `number`."""
    return f"token_selector_{number}"


def _selector_spec(model: CompressedModel, number: int, enters: str) -> GraphSpec:
    hidden = {0: "batch_size", 1: "sequence_length"}
    kept = {0: "batch_size", 1: "kept_length"}
    name, module, facts = selector_name(number), model.entrances[number], model.adapter.facts.decoder
    here = facts.hidden_width(model.begins(number))
    sat_out = enters == "merge"  # what sits out stands in front of the segment before
    full = torch.zeros(2, 9, facts.hidden_width(model.begins(number - 1)) if sat_out else here)
    part = torch.zeros(2, 4, here)
    args: tuple[Any, ...]
    axes: tuple[Any, ...]
    if enters == "gather":
        args, names, axes = (full, torch.zeros(2, 4, dtype=torch.long)), ["full_hidden_states"], (hidden, kept)
    else:
        args, axes = (full, part, torch.zeros(2, 9, dtype=torch.long)), (hidden, kept, hidden)
        names = ["full_hidden_states", "part_hidden_states"]
    return GraphSpec(name, module, args, [*names, "indices"], ["hidden_states"], axes)


def prune_spec(name: str, module: Any, layer: int, dtype: torch.dtype) -> GraphSpec:
    """The graph of a cut inside the decoder, a :class:`PruneInDecoder` on tokens that stand in front of `layer`."""
    rows, images, asking, text, behind = 2, 3, 4, 7, 11
    length = module.tokens + text
    facts = module.selector.adapter.facts.decoder

    def whole(*shape: int) -> Tensor:
        return torch.ones(*shape, dtype=torch.long)

    columns = torch.arange(module.tokens).expand(images, -1).contiguous()
    sequence, kept = {0: "batch_size", 1: "sequence_length"}, {0: "batch_size", 1: "kept_length"}
    cut_arrays = ("image_rows", "image_columns", "query_columns", "query_mask", "layout")
    image, query = {0: "image_count"}, {0: "image_count", 1: "query_length"}
    before = [BEFORE] if module.selector.reads_before else []
    states = torch.zeros(rows, length, facts.hidden_width(layer))
    places, place_axes = _positions(facts, whole(rows, length))
    return GraphSpec(
        name,
        CutGraph(module, dtype),
        (
            states,
            whole(rows, length),
            places,
            torch.zeros(images, dtype=torch.long),
            columns,
            whole(images, asking) * (length - 1),
            whole(images, asking),
            torch.zeros(rows, behind, dtype=torch.long),
            *[states[..., : facts.width].clone() for _ in before],
        ),
        ["full_hidden_states", "attention_mask", "position_ids", *cut_arrays, *before],
        ["hidden_states", "kept_position_ids", "keep_indices"],
        (sequence, sequence, place_axes, image, image, query, query, kept, *[sequence for _ in before]),
    )


def _segment_spec(
    model: CompressedModel, number: int, segment: Any, layers: Sequence[int], dtype: torch.dtype
) -> GraphSpec:
    decoder = model.adapter.facts.decoder
    first, last = number == 0, number == len(model.segments) - 1
    batch, length, past = 2, 5, 3
    cache = torch.zeros(batch, decoder.kv_heads, past, decoder.head_dim, dtype=dtype)
    places, place_axes = _positions(decoder, torch.arange(past, past + length).expand(batch, length).contiguous())
    extra = extra_inputs(decoder)
    width = decoder.hidden_width(model.begins(number))
    args = (
        torch.zeros(batch, length, width),
        torch.ones(batch, past + length, dtype=torch.long),
        places,
        [(cache.clone(), cache.clone()) for _ in layers],
        *[torch.zeros(batch, past + length, dtype=torch.long) if taken else None for taken in extra.values()],
    )
    past_axes = {0: "batch_size", 2: "past_sequence_length"}
    axes = (
        {0: "batch_size", 1: "sequence_length"},
        {0: "batch_size", 1: "total_sequence_length"},
        place_axes,
        [(past_axes, past_axes) for _ in layers],
        *[{0: "batch_size", 1: "total_sequence_length"} if taken else None for taken in extra.values()],
    )
    parts = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
    return GraphSpec(
        segment_name(model, number),
        SegmentGraph(segment, dtype),
        args,
        ["inputs_embeds" if first else "hidden_states", "attention_mask", "position_ids"]
        + [f"past_key_values.{part}" for part in parts]
        + [name for name, taken in extra.items() if taken],
        ["logits" if last else "last_hidden_state"]
        + [f"present.{part}" for part in parts]
        + ([BEFORE] if segment.taps else []),
        axes,
    )


def _positions(decoder: DecoderFacts, ids: Tensor) -> tuple[Tensor, dict[int, str]]:
    """Example positions like `ids` (B, S), and their dynamic axes; in front, time, row and column, if need be."""
    if decoder.position_axes == 1:
        return ids, {0: "batch_size", 1: "sequence_length"}
    return ids.repeat(decoder.position_axes, 1, 1), {1: "batch_size", 2: "sequence_length"}


def export_graph(spec: GraphSpec, path: Path, *, opset: int = DEFAULT_OPSET) -> None:
    """Write one graph to `path`, with its weights beside it where they are too large for one file."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            spec.module.eval(),
            spec.args,
            dynamo=True,
            opset_version=opset,
            input_names=spec.inputs,
            output_names=spec.outputs,
            dynamic_shapes=_dynamic(spec.axes),
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export with dynamo returns a program")
    # Layers share constants of a layout; merged, what is computed of them is computed once.
    DeduplicateInitializersPass(size_limit=SHARED_ELEMENTS)(program.model)
    CommonSubexpressionEliminationPass()(program.model)
    _name_k(program.model)
    _name_axes(program.model, spec)
    save_graph(program.model, path)


def external_data(path: Path) -> Path:
    """Where the weights of a graph lie that are too large for its own file."""
    return path.with_name(path.name + WEIGHTS)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph, with its weights beside it where they are too large for its own file."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    data = external_data(path)
    data.unlink(missing_ok=True)  # what an interrupted export left
    if weights > EXTERNAL_DATA_BYTES:
        ir.save(model, path, external_data=data.name, size_threshold_bytes=EXTERNAL_TENSOR_BYTES)
        data.chmod(path.stat().st_mode)  # it is private where it went through a temporary file
    else:
        ir.save(model, path)


def _name_k(model: ir.Model) -> None:
    """Make K of each TopK a constant.

    Of a sort, which asks for all there is, the exporter computes it from a shape that is known all along, and not every
    runtime sees through that.
    """
    graph = model.graph
    for node in graph:
        if node.op_type != "TopK" or node.inputs[1] is None or node.inputs[1].const_value is not None:
            continue
        shape, axis = node.outputs[0].shape, node.attributes.get_int("axis", -1)
        kept = None if shape is None else shape[axis]
        if not isinstance(kept, int):
            continue  # left to the linter, which refuses it
        name = f"topk_{kept}"
        if name not in graph.initializers:
            graph.register_initializer(
                ir.Value(name=name, const_value=ir.tensor(np.array([kept], dtype=np.int64), name=name))
            )
        node.replace_input_with(1, graph.initializers[name])
    RemoveUnusedNodesPass()(model)


def heard_by(models: Sequence[CompressedModel]) -> dict[str, list[Heard]]:
    """For each graph but the embedding's, the parts of the PyTorch models that it is made of."""
    found: dict[str, list[Heard]] = {}
    for layout, model in enumerate(models):
        found[f"vision_encoder{suffix(layout)}"] = [(model, model.vision)]
        for number, (segment, spec) in enumerate(zip(model.segments, model.plan.segments, strict=True)):
            found.setdefault(segment_name(model, number), []).append((model, segment))
            if spec.enters != "same":
                own = suffix(layout) if spec.enters == "prune" else ""
                found.setdefault(selector_name(number) + own, []).append((model, model.entrances[number]))
    return found


def narrowed(models: Sequence[CompressedModel], dtype: torch.dtype) -> list[CompressedModel]:
    """Copies with weights of another type. Rotary frequencies stay float32, and norms compute in float32 as they do in
    the model's own code.
    """
    # What stands in for a weight is told to deepcopy, which would copy it in float32 first. All in one go, so that the
    # copies go on sharing weights.
    cast = {id(weight): _narrow(weight, dtype) for weight in _weights(models)}
    return copy.deepcopy(list(models), cast)


def _narrow(weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    """A weight in another type, a large one in memory of its own for :func:`discard`."""
    if weight.numel() < OWN_BLOCK_ELEMENTS or not hasattr(mmap, "MADV_DONTNEED"):
        return nn.Parameter(weight.to(dtype, copy=True), requires_grad=False)
    block = mmap.mmap(-1, dtype.itemsize * weight.numel(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    narrow = nn.Parameter(torch.frombuffer(block, dtype=dtype).view(weight.shape), requires_grad=False)
    narrow.data.copy_(weight)
    setattr(narrow, _BLOCK, block)
    return narrow


def discard(copies: Sequence[CompressedModel]) -> None:
    """Give back the memory of copies that are not used any more, whose weights become zero.

    Letting go of them does not do: torch and onnxscript go on referring to much of what they exported.
    """
    for weight in _weights(copies):
        if hasattr(weight, _BLOCK):
            getattr(weight, _BLOCK).madvise(mmap.MADV_DONTNEED)


def _weights(models: Sequence[CompressedModel]) -> list[nn.Parameter]:
    """All weights of models, each once."""
    parts = [part for model in models for part in (model.adapter.model, model)]
    return list(dict.fromkeys(weight for part in parts for weight in part.parameters()))


def cast_weights(model: CompressedModel, dtype: torch.dtype) -> None:
    """Give a model's weights another type."""
    for parameter in (*model.adapter.model.parameters(), *model.parameters()):
        parameter.data = parameter.data.to(dtype)


def _dynamic(axes: Any) -> Any:
    if axes is None:
        return None
    if isinstance(axes, dict):
        return dict.fromkeys(axes, Dim.DYNAMIC)
    return type(axes)(_dynamic(item) for item in axes)


def _flatten(axes: Any) -> list[dict[int, str]]:
    if axes is None:
        return []
    return [axes] if isinstance(axes, dict) else [leaf for item in axes for leaf in _flatten(item)]


def _name_axes(model: ir.Model, spec: GraphSpec) -> None:
    """Give dynamic dimensions the names that runtimes look for; the exporter makes up its own."""
    renamed: dict[str, str] = {}
    for value, axes in zip(model.graph.inputs, _flatten(spec.axes), strict=True):
        names = _names(value)
        renamed |= {names[axis]: name for axis, name in axes.items() if axis in names}
        _rename(value, names | axes)
    for value in (output for node in model.graph for output in node.outputs):
        names = {axis: renamed.get(name, name) for axis, name in _names(value).items()}
        if (value.name or "").startswith("present.") and 2 in names:
            names[2] = "total_sequence_length"
        _rename(value, names)


def _names(value: ir.Value) -> dict[int, str]:
    """Axes whose size is not a constant, and what it is called."""
    sizes = enumerate(value.shape or ())
    return {axis: size.value for axis, size in sizes if not isinstance(size, int) and size.value}


def _rename(value: ir.Value, names: dict[int, str]) -> None:
    if names:
        value.shape = ir.Shape([names.get(axis, size) for axis, size in enumerate(value.shape or ())])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress report and its notes on its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

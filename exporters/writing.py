"""Writes graphs as ONNX files: exported, optimised, their axes named, large weights beside them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
import torch._dynamo
from onnx_ir.external_data import convert_tensors_to_external
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch.export import Dim

from exporters.frame_stack import with_room_for_frames
from exporters.graph_spec import GraphSpec
from exporters.optimization import optimize
from vtc.bundle.manifest import WEIGHTS
from vtc.errors import ParityError

DEFAULT_OPSET = 20
EXTERNAL_DATA_BYTES = 2**25
"""Weights above this go into a file beside the graph.

They are written there out of the model's own memory, and runtimes map the file into theirs; inside the graph, which
protobuf limits to 2 GiB, both cost copies of all weights.
"""
EXTERNAL_TENSOR_BYTES = 1024
"""Smaller ones stay in the graph even then: shapes and the like, which are to be read without the file."""


@with_room_for_frames
def export_graph(spec: GraphSpec, path: Path, *, opset: int = DEFAULT_OPSET) -> None:
    """Write one graph to `path`, with its weights beside it where they are too large for one file."""
    # PyTorch remembers what came of each operator; where sizes are symbols, looking it up costs more than it saves.
    with _quiet(), torch.no_grad(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        program = torch.onnx.export(
            spec.module.eval(),
            spec.args,
            dynamo=True,
            opset_version=opset,
            input_names=spec.inputs,
            output_names=spec.outputs,
            dynamic_shapes=_dynamic(spec.axes),
            optimize=False,
            verbose=False,
        )
        if program is None:
            raise AssertionError("torch.onnx.export with dynamo returns a program")
        optimize(program.model)
    _name_k(program.model)
    _name_axes(program.model, spec)
    save_graph(program.model, path)


def external_data(path: Path) -> Path:
    """Where the weights of a graph lie that are too large for its own file."""
    return path.with_name(path.name + WEIGHTS)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph, with its weights beside it where they are too large for its own file.

    Raises
    ------
    ParityError
        If a weight is not a number; an infinite one may be a mask.
    """
    tensors = [tensor for value in model.graph.initializers.values() if (tensor := value.const_value) is not None]
    for tensor in tensors:
        if tensor.dtype.is_floating_point() and tensor.size and np.isnan(np.min(tensor.numpy())):
            raise ParityError(f"{path.name}: {tensor.name} holds NaN; train or fetch what it was made from again")
    weights = sum(tensor.nbytes for tensor in tensors)
    data = external_data(path)
    data.unlink(missing_ok=True)  # what an interrupted export left
    if weights > EXTERNAL_DATA_BYTES:
        _write_weights(model, data)
    ir.save(model, path)
    if weights > EXTERNAL_DATA_BYTES:
        data.chmod(path.stat().st_mode)  # it is private where it went through a temporary file


def _write_weights(model: ir.Model, data: Path) -> None:
    """Move a graph's weights to a file, where a stack of matrices with which an earlier one begins is part of that."""
    wholes: dict[ir.Value, ir.TensorProtocol] = {}
    beginnings: dict[ir.Value, tuple[ir.Value, ir.TensorProtocol]] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < EXTERNAL_TENSOR_BYTES:
            continue
        longer = next((one for one, stack in wholes.items() if _begins_with(stack, tensor)), None)
        if longer is None:
            wholes[value] = tensor
        else:
            beginnings[value] = longer, tensor
    written = convert_tensors_to_external(list(wholes.values()), data.parent, data.name)
    for value, stored in zip(wholes, written, strict=True):
        value.const_value = stored
    for value, (longer, tensor) in beginnings.items():
        place, shape = cast(ir.ExternalTensor, longer.const_value), ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(
            *(data.name, place.offset, tensor.nbytes, tensor.dtype),
            shape=shape,
            name=tensor.name or "",
            base_dir=data.parent,
        )


def _begins_with(stack: ir.TensorProtocol, part: ir.TensorProtocol) -> bool:
    """Whether a stack of matrices begins with those of a shorter one."""
    sizes, own = stack.shape.numpy(), part.shape.numpy()
    if len(own) != 3 or sizes[1:] != own[1:] or sizes[0] <= own[0] or stack.dtype != part.dtype:
        return False
    longer, values = stack.numpy(), part.numpy()
    return np.array_equal(longer[0, 0], values[0, 0]) and np.array_equal(longer[: own[0]], values)


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


def _dynamic(axes: Any) -> Any:
    if axes is None:
        return None
    if isinstance(axes, dict):
        return dict.fromkeys(axes, Dim.DYNAMIC)
    items = map(_dynamic, axes)
    return axes._make(items) if hasattr(axes, "_make") else type(axes)(items)


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

"""Weights of linear layers stored in 8 or 4 bits, and their inputs rounded to 8: ``DequantizeLinear`` in the graph.

All is symmetric, without zero points, with scales above zero, as TensorRT asks. The numbers are worked out here: ONNX
Runtime's own quantiser gives blocks scales of either sign, which TensorRT's parser refuses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from exporters.precision import Precision, Stored
from exporters.precision.floats import element_types, set_nodes
from vtc.models.base import VLMAdapter

BLOCKS = (128, 64, 32, 16)
"""Inputs that share a scale: the first that divides their number. GPUs have kernels for 128."""
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of a block's largest weight that may become the largest number; the one with the least squared error does."""
LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
SMALLEST_SCALE = 2.0**-20
"""Above zero in float16 too."""
NUMBERS: dict[str, Any] = {"int8": np.int8, "int4": ml_dtypes.int4, "fp8": ml_dtypes.float8_e4m3fn}
PASSED_THROUGH = frozenset({"Cast", "Transpose"})
"""Operators that may stand between a weight and its multiplication."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """A linear layer, as a graph refers to it.

    Attributes
    ----------
    names : tuple of str
        Modules whose weight it is.
    outputs : int
        Which axis of the stored matrix its outputs are; the other one is its inputs.
    """

    names: tuple[str, ...]
    outputs: int


@dataclass(frozen=True)
class Small:
    """A matrix in few bits.

    Attributes
    ----------
    numbers : array of shape (R, C)
        Of the type that is stored.
    scales : array
        Per output of shape (outputs,), per block of inputs of the matrix' rank, or a single one.
    axis : int
        Of outputs, or where there are blocks of inputs.
    block : int
        Inputs that share a scale; 0 without blocks.
    """

    numbers: NDArray[Any]
    scales: NDArray[Any]
    axis: int
    block: int = 0

    def values(self) -> Floats:
        """The matrix that it stands for, float32."""
        scales = self.scales.astype(np.float32)
        if self.block:
            scales = scales.repeat(self.block, axis=self.axis)
        elif scales.ndim:
            scales = np.expand_dims(scales, 1 - self.axis)
        return np.asarray(self.numbers.astype(np.float32) * scales)


@dataclass(frozen=True)
class Rounded:
    """A layer whose input is rounded: names of the value that it rounds, of what comes out, and of its module.

    Attributes
    ----------
    input, output, module : str
    biased : bool
        Whether the bias is in what comes out.
    """

    input: str
    output: str
    module: str
    biased: bool


@dataclass(frozen=True)
class Quantised:
    """What was quantised in a graph.

    Attributes
    ----------
    weights, left : int
        How many weights were, and how many could not be.
    layers : tuple of Rounded
    """

    weights: int
    left: int
    layers: tuple[Rounded, ...]


def linear_weights(adapter: VLMAdapter, dtype: torch.dtype) -> dict[str, Linear]:
    """The weights that are quantised, by their digest in either orientation.

    Those of every linear layer of the model but the head: vision tower, projector and decoder. Trained selectors are
    no part of the model and stay as they are.

    Parameters
    ----------
    adapter : VLMAdapter
    dtype : torch.dtype
        Of the weights in the graphs.
    """
    found: dict[str, Linear] = {}
    for name, module in linear_layers(adapter):
        weight = module.weight.detach().cpu().to(dtype)
        # An embedding's or a head's weight under another name is not a linear layer's.
        for outputs, matrix in enumerate((weight, weight.T)):
            key = digest(matrix.contiguous().numpy())
            names = found[key].names if key in found else ()
            found[key] = Linear((*names, name), outputs)
    return found


def linear_layers(adapter: VLMAdapter) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of the layers whose weights are quantised."""
    head: Any = adapter.head
    kept = {id(head), id(adapter.embed_tokens)}
    tied = {id(getattr(module, "weight", None)) for module in (head, adapter.embed_tokens)}
    for name, module in adapter.model.named_modules():
        if isinstance(module, nn.Linear) and id(module) not in kept and id(module.weight) not in tied:
            yield name, module


def digest(matrix: NDArray[Any]) -> str:
    """Of a matrix' shape and values."""
    return hashlib.sha256(repr((matrix.shape, matrix.dtype.str)).encode() + matrix.tobytes()).hexdigest()


def small(matrix: NDArray[Any], outputs: int, stored: Stored, block: int = 0) -> Small | None:
    """A matrix of two axes in few bits; None where it cannot be, as its inputs do not divide into blocks.

    Parameters
    ----------
    matrix : array of shape (R, C)
    outputs : int
        Which axis the outputs are.
    stored : {"int8", "int4", "fp8"}
        fp8 has one scale for all, the others one for each output.
    block : int
        Most inputs that share a scale; 0 for all.
    """
    inputs, dtype = 1 - outputs, matrix.dtype
    values = matrix.astype(np.float32)
    largest = LARGEST[stored]
    if block:
        block = next((size for size in BLOCKS if size <= block and values.shape[inputs] % size == 0), 0)
        if not block:
            return None
        blocks = np.moveaxis(values, inputs, 0)
        blocks = blocks.reshape(-1, block, blocks.shape[1])
        scales = np.moveaxis(_clipped(blocks, largest, dtype), inputs, 0)
        numbers = _rounded(values, scales.astype(np.float32).repeat(block, axis=inputs), stored)
        return Small(numbers, scales, inputs, block)
    scale = _scale(np.abs(values).max(axis=None if stored == "fp8" else inputs), largest, dtype)
    wide = np.expand_dims(scale, inputs) if scale.ndim else scale
    return Small(_rounded(values, wide.astype(np.float32), stored), scale, outputs)


def input_scale(reached: float, stored: Stored) -> float:
    """Scale of a layer's input that reaches a magnitude; one that float16 holds."""
    return float(_scale(reached, LARGEST[stored], np.float16))


def _scale(reached: Any, largest: float, dtype: Any) -> NDArray[Any]:
    return np.asarray(np.maximum(np.asarray(reached) / largest, SMALLEST_SCALE), dtype=dtype)


def _rounded(values: Floats, scales: Floats, stored: Stored) -> NDArray[Any]:
    numbers = np.clip(values / scales, -LARGEST[stored], LARGEST[stored])
    return np.asarray((numbers if stored == "fp8" else np.rint(numbers)).astype(NUMBERS[stored]))


def _clipped(blocks: Floats, largest: float, dtype: Any) -> NDArray[Any]:
    """Scales (blocks, outputs) of blocks (blocks, inputs, outputs) with the least squared error."""
    reached = np.abs(blocks).max(axis=1)
    best = np.full(reached.shape, np.inf, np.float32)
    chosen = _scale(reached, largest, dtype)
    for clip in CLIPS:
        scales = _scale(reached * clip, largest, dtype)
        wide = scales.astype(np.float32)[:, None]
        error = ((np.clip(np.rint(blocks / wide), -largest, largest) * wide - blocks) ** 2).sum(axis=1)
        better = error < best
        best, chosen = np.where(better, error, best), np.where(better, scales, chosen)
    return np.asarray(chosen)


def multiplied(
    model: ModelProto, linears: Mapping[str, Linear], folder: Path = Path()
) -> dict[str, list[tuple[NodeProto, Linear]]]:
    """For each weight of a graph that is quantised, the multiplications that it takes part in.

    Parameters
    ----------
    model : ModelProto
    linears : mapping of digest to Linear
    folder : Path
        Of weights that the graph does not hold itself.

    Returns
    -------
    dict of initializer name to list of (node, layer)
    """
    found: dict[str, Linear] = {}
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            linear = linears.get(digest(numpy_helper.to_array(tensor, str(folder))))
            if linear:
                found[tensor.name] = linear
    source = {name: name for name in found}
    uses: dict[str, list[tuple[NodeProto, Linear]]] = {name: [] for name in found}
    for node in model.graph.node:
        if node.op_type in PASSED_THROUGH and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type in ("MatMul", "Gemm") and node.input[1] in source:
            name = source[node.input[1]]
            uses[name].append((node, found[name]))
    return {name: nodes for name, nodes in uses.items() if nodes}


def quantize(
    model: ModelProto, precision: Precision, linears: Mapping[str, Linear], reached: Mapping[str, float]
) -> Quantised:
    """Quantise a graph in place.

    Parameters
    ----------
    model : ModelProto
        Of the precision's base, with its weights.
    precision : Precision
    linears : mapping of digest to Linear
    reached : mapping of module name to float
        Largest magnitude of each layer's input; not looked at where activations stay.
    """
    if precision.stored is None:
        raise AssertionError("only quantised precisions are made by quantising")
    uses = multiplied(model, linears)
    types = element_types(model)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    inputs: dict[str, tuple[str, float]] = {}
    layers: list[Rounded] = []
    done = left = 0
    for name, users in uses.items():
        matrix = initializers[name]
        layer = users[0][1]
        found = small(numpy_helper.to_array(matrix), layer.outputs, precision.stored, precision.block)
        if found is None:
            left += 1
            continue
        done += 1
        nodes.append(_dequantized(model, name, found))
        matrix.CopyFrom(numpy_helper.from_array(found.numbers, f"{name}/numbers"))
        if precision.activations:
            for node, _ in users:
                inputs[node.output[0]] = (node.input[0], max(reached[one] for one in layer.names))
                layers.append(Rounded(node.input[0], node.output[0], layer.names[0], len(node.input) > 2))
    rounded: set[str] = set()
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.output[0] in inputs:
            name, largest = inputs[node.output[0]]
            scale = input_scale(largest, precision.stored)
            result = f"{name}/rounded at {scale:.6g}"
            if result not in rounded:
                rounded.add(result)
                dtype = np.float16 if types[name] == TensorProto.FLOAT16 else np.float32
                nodes += _round_input(model, name, result, np.asarray(scale, dtype), precision)
            node.input[0] = result
        nodes.append(node)
    set_nodes(model, nodes)
    for opset in model.opset_import if done else ():
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, precision.opset)
    return Quantised(done, left, tuple(layers))


def _dequantized(model: ModelProto, name: str, found: Small) -> NodeProto:
    """The node that makes the weight `name` of its numbers, under the name that it had."""
    model.graph.initializer.append(numpy_helper.from_array(found.scales, f"{name}/scales"))
    how: dict[str, Any] = {"axis": found.axis} if found.scales.ndim else {}
    if found.block:
        how["block_size"] = found.block
    return helper.make_node(
        "DequantizeLinear", [f"{name}/numbers", f"{name}/scales"], [name], name=f"dequantize_{name}", **how
    )


def _round_input(
    model: ModelProto, name: str, result: str, scale: NDArray[Any], precision: Precision
) -> list[NodeProto]:
    """Nodes that round a value to the type that weights are stored in, and back."""
    zero = np.zeros((), NUMBERS[str(precision.stored)])
    model.graph.initializer.append(numpy_helper.from_array(scale, f"{result}/scale"))
    model.graph.initializer.append(numpy_helper.from_array(zero, f"{result}/zero"))
    shared = [f"{result}/scale", f"{result}/zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *shared], [f"{result}/numbers"], name=f"quantize_{result}"),
        helper.make_node("DequantizeLinear", [f"{result}/numbers", *shared], [result], name=f"dequantize_{result}"),
    ]

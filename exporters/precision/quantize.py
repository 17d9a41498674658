"""Weights of linear layers stored in 8 or 4 bits, and their inputs rounded to 8: ``DequantizeLinear`` in the graph."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from exporters.precision import Precision
from exporters.precision.floats import set_nodes
from exporters.precision.joined import join_products
from exporters.precision.rounding import Rounding
from exporters.precision.small import Small
from vtc.models.base import VLMAdapter

PASSED_THROUGH = frozenset({"Cast", "Transpose"})
"""Operators that may stand between a weight and its multiplication."""


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
    joined : int
        How many of them went into another's matrix; see :func:`exporters.precision.joined.join_products`.
    layers : tuple of Rounded
    """

    weights: int
    left: int
    joined: int
    layers: tuple[Rounded, ...]


def linear_weights(adapter: VLMAdapter, dtype: torch.dtype, *, head: bool = False) -> dict[str, Linear]:
    """The weights that are quantised, by their digest in either orientation.

    Those of every linear layer of the model: vision tower, projector and decoder. Trained selectors are no part of the
    model and stay as they are.

    Parameters
    ----------
    adapter : VLMAdapter
    dtype : torch.dtype
        Of the weights in the graphs.
    head : bool
        Whether the head's is among them.
    """
    found: dict[str, Linear] = {}
    for name, module in linear_layers(adapter, head=head):
        weight = module.weight.detach().cpu().to(dtype)
        # An embedding's weight under another name is not a linear layer's.
        for outputs, matrix in enumerate((weight, weight.T)):
            key = digest(matrix.contiguous().numpy())
            names = found[key].names if key in found else ()
            found[key] = Linear((*names, name), outputs)
    return found


def linear_layers(adapter: VLMAdapter, *, head: bool = False) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of the layers whose weights are quantised, in the model's order."""
    own: Any = adapter.head
    kept = {id(own), id(adapter.embed_tokens)}
    tied = {id(getattr(module, "weight", None)) for module in (own, adapter.embed_tokens)}
    for name, module in adapter.model.named_modules():
        body = id(module) not in kept and id(getattr(module, "weight", None)) not in tied
        if isinstance(module, nn.Linear) and (head if module is own else body):
            yield name, module


def vision_layers(adapter: VLMAdapter) -> frozenset[str]:
    """Names of the linear layers of vision tower and projector."""
    behind = {id(module) for layer in adapter.decoder_layers for module in layer.modules()}
    return frozenset(name for name, module in linear_layers(adapter) if id(module) not in behind)


def embedding(adapter: VLMAdapter) -> tuple[str, nn.Embedding]:
    """Name and module of the token embedding."""
    inside = {id(module) for module in adapter.embed_tokens.modules() if isinstance(module, nn.Embedding)}
    return next(
        (name, module)
        for name, module in adapter.model.named_modules()
        if isinstance(module, nn.Embedding) and id(module) in inside
    )


def embedding_table(adapter: VLMAdapter, dtype: torch.dtype, weights: Mapping[str, Small]) -> dict[str, Small]:
    """What the token embedding is stored as, by the digest of the one in the graphs; nothing where it stays."""
    name, module = embedding(adapter)
    if name not in weights:
        return {}
    return {digest(module.weight.detach().cpu().to(dtype).numpy()): weights[name]}


def digest(matrix: NDArray[Any]) -> str:
    """Of a matrix' shape and values."""
    return hashlib.sha256(repr((matrix.shape, matrix.dtype.str)).encode() + matrix.tobytes()).hexdigest()


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
    model: ModelProto,
    precision: Precision,
    linears: Mapping[str, Linear],
    weights: Mapping[str, Small],
    reached: Mapping[str, float],
    tables: Mapping[str, Small],
) -> Quantised:
    """Quantise a graph in place, and join products of one value with several weights.

    Parameters
    ----------
    model : ModelProto
        Of the precision's base, with its weights.
    precision : Precision
    linears : mapping of digest to Linear
    weights : mapping of module name to Small
        Outputs on axis 0; of a layer that has none, the weight is left.
    reached : mapping of module name to float
        Of layers whose input is rounded, its largest magnitude.
    tables : mapping of digest to Small
        Embeddings, with one scale for each row, or for each block of it.
    """
    if precision.stored is None:
        raise AssertionError("only quantised precisions are made by quantising")
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    inputs: dict[str, tuple[float, Small]] = {}
    layers: list[Rounded] = []
    done = left = 0
    for name, users in multiplied(model, linears).items():
        layer = users[0][1]
        if layer.names[0] not in weights:
            left += 1
            continue
        done += 1
        largest = [reached[one] for one in layer.names if one in reached]
        zero = bool(largest) and initializers[name].data_type == TensorProto.FLOAT
        nodes.append(_dequantized(model, initializers[name], weights[layer.names[0]], layer.outputs, zero=zero))
        for node, _ in users if largest else ():
            inputs[node.output[0]] = max(largest), weights[layer.names[0]]
            layers.append(Rounded(node.input[0], node.output[0], layer.names[0], len(node.input) > 2))
    rounding = Rounding(model, precision.rounds_to)
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.output[0] in inputs:
            nodes += rounding.before(node, *inputs[node.output[0]])
        nodes.append(node)
    set_nodes(model, nodes)
    rounding.drop_unused()
    joined = join_products(model)
    looked_up = _look_up(model, tables)
    for opset in model.opset_import if done else ():
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, precision.opset)
    return Quantised(done + looked_up, left, joined, tuple(layers))


def _dequantized(model: ModelProto, matrix: TensorProto, found: Small, outputs: int, *, zero: bool) -> NodeProto:
    """The node that makes a weight of its numbers, as its one user wants it.

    ONNX Runtime joins it with a product that follows, and with nothing where the weight is turned in between. With a
    `zero` point, which is 0, it can turn int8 into uint8, as it does for exact sums on processors without VNNI.
    """
    name = result = matrix.name
    users = [node for node in model.graph.node if name in node.input]
    if outputs == 0 and len(users) == 1 and users[0].op_type == "Transpose":
        result = users[0].output[0]
        model.graph.node.remove(users[0])
        outputs = 1
    elif outputs == 0 and len(users) == 1 and users[0].op_type == "Gemm":
        turned = next(one for one in users[0].attribute if one.name == "transB")
        users[0].attribute.remove(turned)
        outputs = 1
    found = found.turned() if outputs else found
    matrix.CopyFrom(numpy_helper.from_array(found.numbers, f"{name}/numbers"))
    model.graph.initializer.append(numpy_helper.from_array(found.scales, f"{name}/scales"))
    how: dict[str, Any] = {"axis": found.axis} if found.scales.ndim else {}
    if found.block:
        how["block_size"] = found.block
    stored = [f"{name}/numbers", f"{name}/scales"]
    if zero:
        stored.append(f"{name}/zero")
        model.graph.initializer.append(numpy_helper.from_array(np.zeros_like(found.scales, np.int8), stored[-1]))
    return helper.make_node("DequantizeLinear", stored, [result], name=f"dequantize_{name}", **how)


def _look_up(model: ModelProto, tables: Mapping[str, Small]) -> int:
    """Store embeddings small: rows are looked up as they are stored, and only then multiplied by their scales."""
    nodes: list[NodeProto] = []
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, Small] = {}
    for name in {node.input[0] for node in model.graph.node if node.op_type == "Gather"} & set(initializers):
        tensor = initializers[name]
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
            table = tables.get(digest(numpy_helper.to_array(tensor)))
            if table is not None:
                found[name] = table
    for node in model.graph.node:
        if node.op_type != "Gather" or node.input[0] not in found:
            nodes.append(node)
            continue
        name, ids = node.input
        result = node.output[0]
        rows, wide, scales = (f"{result}/{part}" for part in ("rows", "wide", "scales"))
        nodes += [
            helper.make_node("Gather", [name, ids], [rows], name=f"{result}/look_up"),
            helper.make_node("Cast", [rows], [wide], name=f"{result}/widen", to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}/scales", ids], [scales], name=f"{result}/look_up_scales"),
        ]
        if found[name].block:
            nodes += [
                helper.make_node("Reshape", [wide, f"{name}/blocks"], [f"{wide}/blocks"], name=f"{wide}/split"),
                helper.make_node("Mul", [f"{wide}/blocks", scales], [f"{result}/blocks"], name=f"{result}/scale"),
                helper.make_node("Reshape", [f"{result}/blocks", f"{name}/row"], [result], name=f"{result}/join"),
            ]
        else:
            nodes.append(helper.make_node("Mul", [wide, scales], [result], name=f"{result}/scale"))
    for name, table in found.items():
        initializers[name].CopyFrom(numpy_helper.from_array(table.numbers, name))
        model.graph.initializer.append(numpy_helper.from_array(table.scales[..., None], f"{name}/scales"))
        if table.block:
            split, joined = [0, 0, -1, table.block], [0, 0, table.numbers.shape[1]]
            model.graph.initializer.append(numpy_helper.from_array(np.array(split, np.int64), f"{name}/blocks"))
            model.graph.initializer.append(numpy_helper.from_array(np.array(joined, np.int64), f"{name}/row"))
    if found:
        set_nodes(model, nodes)
    return len(found)

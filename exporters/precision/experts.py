"""Experts of a mixture stored in 8 or 4 bits, in blocks of inputs, each weight as its nearest number.

Numbers stand around a zero point in the middle of what their bits hold, and rows of gate and up projection alternate:
so ONNX Runtime's ``QMoE`` takes the bytes that ``DequantizeLinear`` reads in portable graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from exporters.precision import Precision
from exporters.precision.floats import set_nodes
from exporters.precision.quantize import digest
from exporters.precision.scales import block_of
from exporters.precision.small import Small, small
from vtc.models.base import VLMAdapter

UNSIGNED: dict[str, tuple[Any, int]] = {"int4": (ml_dtypes.uint4, 8), "int8": (np.uint8, 128)}
"""Type that numbers are stored in, and its zero point."""


@dataclass(frozen=True)
class Source:
    """What a graph's stack of experts' matrices is made of.

    Attributes
    ----------
    name : str
        The parameter whose values they are.
    by_turns : bool
        Whether rows of gate and up projection alternate; in the parameter, one follows the other.
    """

    name: str
    by_turns: bool


def expert_parameters(adapter: VLMAdapter) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and parameter of the stacked matrices of experts: (E, 2 * F, D) and (E, D, F) of each mixture."""
    names = {id(module): name for name, module in adapter.model.named_modules()}
    for layer in adapter.decoder_layers:
        stacked = [one for one in layer.modules() if isinstance(getattr(one, "gate_up_proj", None), nn.Parameter)]
        for experts in stacked:
            for kind in ("gate_up_proj", "down_proj"):
                yield f"{names[id(experts)]}.{kind}", getattr(experts, kind)


def expert_stacks(adapter: VLMAdapter, dtype: torch.dtype) -> dict[str, Source]:
    """The matrices of experts by their digest in graphs, whose weights have a type."""
    found = {}
    for name, parameter in expert_parameters(adapter):
        values, turned = parameter.detach().cpu().to(dtype).numpy(), name.endswith("gate_up_proj")
        found[digest(by_turns(values) if turned else values)] = Source(name, turned)
    return found


def nearest_experts(adapter: VLMAdapter, precision: Precision) -> dict[str, Small]:
    """What experts are stored as, by the parameter's name: rows (E * outputs, inputs), outputs on axis 0.

    Those of a layer share the size of blocks, as ``QMoE`` asks; there is nothing where none divides both their inputs.
    """
    if precision.stored is None or not precision.experts:
        return {}
    found = {}
    block = block_of(gcd(*(one.shape[-1] for _, one in expert_parameters(adapter))), precision.block)
    for name, parameter in expert_parameters(adapter) if block else ():
        each = (
            small(matrix, 0, precision.stored, block, either_sign=precision.either_sign)
            for matrix in parameter.detach().cpu().float().numpy()
        )
        stored = [one for one in each if one is not None]
        numbers, scales = (np.concatenate([getattr(one, part) for one in stored]) for part in ("numbers", "scales"))
        found[name] = Small(numbers, scales, 1, block)
    return found


def store_experts(model: ModelProto, stacks: Mapping[str, Source], weights: Mapping[str, Small]) -> tuple[int, int]:
    """Store a graph's experts in few bits, in place.

    Parameters
    ----------
    model : ModelProto
        In float32, with its weights.
    stacks : mapping of digest to Source
    weights : mapping of parameter name to Small
        Of what it lacks, experts are left.

    Returns
    -------
    (int, int)
        How many stacks of matrices were stored so, and how many were left.
    """
    found: dict[str, Source] = {}
    for tensor in model.graph.initializer if stacks else ():
        if len(tensor.dims) == 3 and tensor.data_type == TensorProto.FLOAT:
            source = stacks.get(digest(numpy_helper.to_array(tensor)))
            found |= {tensor.name: source} if source else {}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes, made = [], set[str]()
    for node in model.graph.node:
        for name in node.input:
            if name in found and found[name].name in weights and name not in made:
                made.add(name)  # just before they are multiplied: all layers' at once would not fit
                nodes.append(_dequantized(model, tensors[name], found[name], weights[found[name].name]))
        nodes.append(node)
    set_nodes(model, nodes)
    return len(made), len(found) - len(made)


def _dequantized(model: ModelProto, matrices: TensorProto, source: Source, found: Small) -> Any:
    """The node that makes a stack of matrices of its numbers."""
    name, dims = matrices.name, list(matrices.dims)
    numbers, scales = (part.reshape(*dims[:2], -1) for part in (found.numbers, found.scales))
    if source.by_turns:
        numbers, scales = by_turns(numbers), by_turns(scales)
    dtype, zero = UNSIGNED[found.numbers.dtype.name]
    unsigned = (numbers.astype(np.int16) + zero).astype(dtype)
    matrices.CopyFrom(numpy_helper.from_array(unsigned, f"{name}/numbers"))
    zeros = f"experts/{zero}_{'x'.join(map(str, scales.shape))}"  # one for all layers
    model.graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scales"))
    if zeros not in {tensor.name for tensor in model.graph.initializer}:
        model.graph.initializer.append(numpy_helper.from_array(np.full(scales.shape, zero).astype(dtype), zeros))
    model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    stored = [f"{name}/numbers", f"{name}/scales", zeros]
    how: dict[str, Any] = {"axis": 2, "block_size": found.block}
    return helper.make_node("DequantizeLinear", stored, [name], name=f"dequantize_{name}", **how)


def by_turns(matrices: NDArray[Any]) -> NDArray[Any]:
    """Matrices (E, 2 * F, ...) of which rows of the first and second half alternate."""
    halves = matrices.reshape(len(matrices), 2, -1, *matrices.shape[2:])
    return np.ascontiguousarray(np.swapaxes(halves, 1, 2)).reshape(matrices.shape)

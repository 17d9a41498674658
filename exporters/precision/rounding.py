"""Inputs of quantised layers rounded to 8 bits in the graph, so that a runtime multiplies 8 bits by 8 bits.

TensorRT finds such products between the ``QuantizeLinear`` and ``DequantizeLinear`` nodes of inputs and weights. ONNX
Runtime on a processor asks for more, which graphs in float32 therefore have: inputs in uint8 around 128, where it
multiplies int8 by int8 on few; a bias that is a whole number too, or it takes a product and its bias for one of floats;
and for each product a weight of its own, with zero points, or it cannot turn that into uint8, as it does for exact sums
where there is no VNNI.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporters.precision import Stored
from exporters.precision.floats import element_types
from exporters.precision.small import NUMBERS, Small, input_scale

PARTS = ("numbers", "scales", "zero")
"""Of a weight, in the order in which ``DequantizeLinear`` takes them."""


class Rounding:
    """Rounds what products of a graph take.

    Parameters
    ----------
    model : ModelProto
        Whose weights are ``DequantizeLinear`` nodes; gets tensors.
    stored : {"int8", "fp8"}
        What inputs are rounded to.
    """

    def __init__(self, model: ModelProto, stored: Stored) -> None:
        self._model, self._stored = model, stored
        self._types = element_types(model)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._users: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._rounded: set[str] = set()
        self._weights: set[str] = set()
        self._replaced: set[str] = set()

    def before(self, product: NodeProto, reached: float, weight: Small) -> list[NodeProto]:
        """Let a product take its input rounded.

        Parameters
        ----------
        product : NodeProto
            A MatMul or a Gemm of an input and a weight.
        reached : float
            Largest magnitude of its input.
        weight : Small
            With a scale for each output, or a single one.

        Returns
        -------
        list of NodeProto
            What has to stand before it.
        """
        name = product.input[0]
        half = self._types[name] == TensorProto.FLOAT16
        scale = input_scale(reached, self._stored)
        rounded = product.input[0] = f"{name}/rounded at {scale:.6g}"
        nodes = []
        if rounded not in self._rounded:
            self._rounded.add(rounded)
            zero = np.zeros((), NUMBERS[self._stored]) if half else np.asarray(128, np.uint8)
            nodes += self._round(name, rounded, np.asarray(scale, np.float16 if half else np.float32), zero)
        if not half:
            nodes += self._own_weight(product, weight)
            nodes += self._whole_bias(product, np.asarray(scale * weight.scales.astype(np.float32)))
        return nodes

    def drop_unused(self) -> None:
        """Remove biases that others stand for."""
        used = {name for node in self._model.graph.node for name in node.input}
        for name in self._replaced - used:
            self._model.graph.initializer.remove(self._tensors[name])

    def _round(self, name: str, result: str, scale: NDArray[Any], zero: NDArray[Any]) -> list[NodeProto]:
        """Nodes that round a value, and turn it back."""
        shared = [self._store(f"{result}/scale", scale), self._store(f"{result}/zero", zero)]
        return [
            helper.make_node("QuantizeLinear", [name, *shared], [f"{result}/numbers"], name=f"quantize_{result}"),
            helper.make_node("DequantizeLinear", [f"{result}/numbers", *shared], [result], name=f"dequantize_{result}"),
        ]

    def _own_weight(self, product: NodeProto, weight: Small) -> list[NodeProto]:
        """A copy of a weight that another product has, which only selectors make of keys and queries."""
        name = product.input[1]
        if name not in self._weights:
            self._weights.add(name)
            return []
        made = product.input[1] = f"{product.output[0]}/weight"
        outputs_first = any(one.name == "transB" and one.i for one in product.attribute)
        copy = weight if outputs_first else weight.turned()
        tensors = copy.numbers, copy.scales, np.zeros_like(copy.scales, np.int8)
        stored = [self._store(f"{made}/{part}", values) for part, values in zip(PARTS, tensors, strict=True)]
        return [helper.make_node("DequantizeLinear", stored, [made], name=f"dequantize_{made}", axis=copy.axis)]

    def _whole_bias(self, product: NodeProto, scales: NDArray[np.float32]) -> list[NodeProto]:
        """A bias in 32 bits, in units of the product's sums."""
        following = self._users.get(product.output[0], [])
        adds = product if len(product.input) > 2 else next(iter(following), None)
        if adds is None or (adds is not product and (adds.op_type != "Add" or len(following) > 1)):
            return []
        for place, name in enumerate(adds.input):
            bias = self._tensors.get(name)
            if bias is None or list(bias.dims) != list(scales.shape):
                continue
            numbers = np.rint(numpy_helper.to_array(bias) / scales.astype(np.float64))
            if np.abs(numbers).max(initial=0) > np.iinfo(np.int32).max:
                return []
            made = adds.input[place] = f"{product.output[0]}/bias"
            self._replaced.add(name)
            stored = [self._store(f"{made}/numbers", numbers.astype(np.int32)), self._store(f"{made}/scales", scales)]
            return [helper.make_node("DequantizeLinear", stored, [made], name=f"dequantize_{made}", axis=0)]
        return []

    def _store(self, name: str, values: NDArray[np.generic]) -> str:
        self._model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

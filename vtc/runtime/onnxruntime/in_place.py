"""A KV cache that one buffer holds: graphs write each token's keys and values where they stay.

Such graphs (form ``ort``) take the past and give the present at the same address, with room for what is to come, and go
by the attention mask to know how much of it is filled. Nothing of the cache is ever copied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vtc.errors import InputError
from vtc.runtime.interface import Array, IntArray, Tensor
from vtc.runtime.onnxruntime.graph import Graph
from vtc.runtime.past import PAST, PRESENT, cache_inputs


class InPlacePast:
    """A :class:`~vtc.runtime.interface.Past` in ONNX Runtime.

    Parameters
    ----------
    graph : Graph
    shape : (int, int, int)
        Rows, heads and values of a head.
    most : int
        Tokens that there is room for.
    """

    def __init__(self, graph: Graph, shape: tuple[int, int, int], most: int) -> None:
        rows, heads, width = shape
        names = cache_inputs(graph)
        self._graph, self._most = graph, most
        self.tensors: list[Tensor] = [
            graph.allocate(rows, heads, most, width, dtype=graph.inputs[name]) for name in names
        ]
        self._binding = graph.binding()
        outputs = [name for name in graph.outputs if not name.startswith(PRESENT)]
        for name in outputs:  # first, so that they come first
            self._binding.bind_output(name, graph.device)
        for name, tensor in zip(names, self.tensors, strict=True):
            self._binding.bind_ortvalue_input(name, tensor)
            self._binding.bind_ortvalue_output(name.replace(PAST, PRESENT, 1), tensor)
        self._outputs = outputs
        self._mask: IntArray = np.zeros((rows, 0), dtype=np.int64)
        self._positions: IntArray | None = None

    @property
    def length(self) -> int:
        return int(self._mask.shape[1])

    @property
    def bytes(self) -> int:
        """Size of the keys and values of the tokens in it."""
        return sum(int(tensor.tensor_size_in_bytes()) for tensor in self.tensors) * self.length // self._most

    def mask(self) -> IntArray:
        return np.concatenate([self._mask, np.ones_like(self._mask[:, :1])], axis=1)

    def positions(self, here: IntArray) -> IntArray | None:
        return None if self._positions is None else np.concatenate([self._positions, here], axis=1)

    def run(
        self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """See :class:`~vtc.runtime.interface.Past`.

        Raises
        ------
        InputError
            If there is no room left.
        """
        mask: Any = feeds["attention_mask"]
        if mask.shape[1] > self._most:
            raise InputError(
                f"the cache has room for {self._most} tokens, which are there; ask for a longer answer from the start "
                "(max_new_tokens)"
            )
        for name in self._outputs:
            self._binding.bind_output(name, "cpu" if name in host else self._graph.device)
        self._graph.bind_inputs(self._binding, feeds)
        outputs: Sequence[Tensor] = self._graph.execute(self._binding)
        return dict(zip(self._outputs, outputs, strict=False)), []

    def begin(self, present: Sequence[Tensor], mask: IntArray, positions: IntArray | None) -> None:
        self._mask, self._positions = mask, positions

    def append(self, present: Sequence[Tensor], here: IntArray) -> None:
        self._mask, self._positions = self.mask(), self.positions(here)

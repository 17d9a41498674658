"""A KV cache that one buffer holds: graphs write each token's keys and values where they stay.

Such graphs (form ``ort``) take the past and give the present at the same address, with room for what is to come, and go
by the attention mask to know how much of it is filled. Nothing of the cache is ever copied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vtc.errors import InputError
from vtc.runtime.interface import DTYPES, Array, IntArray, Tensor
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
        self.length = 0
        self._mask: IntArray = np.ones((rows, most), dtype=np.int64)  # of what is there, and of what will be
        self._positions: IntArray | None = None
        self._binding = graph.binding()
        self._outputs = [name for name in graph.outputs if not name.startswith(PRESENT)]
        self._step: dict[str, Tensor] = {}  # outputs of one token, which are bound from the second on
        for name in self._outputs:  # first, so that they come first
            self._binding.bind_output(name, graph.device)
        for name, tensor in zip(names, self.tensors, strict=True):
            self._binding.bind_ortvalue_input(name, tensor)
            self._binding.bind_ortvalue_output(name.replace(PAST, PRESENT, 1), tensor)

    @property
    def bytes(self) -> int:
        """Size of the keys and values of the tokens in it."""
        return sum(int(tensor.tensor_size_in_bytes()) for tensor in self.tensors) * self.length // self._most

    def mask(self) -> IntArray:
        """See :class:`~vtc.runtime.interface.Past`.

        Raises
        ------
        InputError
            If there is no room for another token.
        """
        if self.length == self._most:
            raise InputError(
                f"the cache has room for {self._most} tokens, which are there; ask for a longer answer from the start "
                "(max_new_tokens)"
            )
        return self._mask[:, : self.length + 1]

    def positions(self, here: IntArray) -> IntArray | None:
        if self._positions is None:
            return None
        self._positions[:, self.length : self.length + 1] = here
        return self._positions[:, : self.length + 1]

    def run(
        self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """See :class:`~vtc.runtime.interface.Past`; outputs of a token hold until the next one."""
        mask: Any = feeds["attention_mask"]
        new = mask.shape[1] - self.length
        self._graph.bind_inputs(self._binding, feeds)
        if new == 1 and self._step:
            self._graph.execute(self._binding)
            return self._step, []
        devices = {name: "cpu" if name in host else self._graph.device for name in self._outputs}
        for name, device in devices.items():
            self._binding.bind_output(name, device)
        self._graph.execute(self._binding)
        found = dict(zip(self._outputs, self._binding.get_outputs(), strict=False))
        if new == 1:
            for name, tensor in found.items():
                dtype = DTYPES[tensor.data_type()]
                self._step[name] = self._graph.allocate(*tensor.shape(), dtype=dtype, device=devices[name])
                self._binding.bind_ortvalue_output(name, self._step[name])
        return found, []

    def begin(self, present: Sequence[Tensor], mask: IntArray, positions: IntArray | None) -> None:
        self.length = mask.shape[1]
        self._mask[:, : self.length] = mask
        if positions is not None:
            self._positions = np.zeros_like(self._mask)
            self._positions[:, : self.length] = positions

    def append(self, present: Sequence[Tensor], here: IntArray) -> None:
        self.positions(here)
        self.length += 1

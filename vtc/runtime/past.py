"""The KV cache of one segment: one that grows by a token a step, and one with room for more at fixed addresses.

A cache runs its segment's graph itself, as what goes in and comes out of it with keys and values is its own affair.

With room, every step has the same shapes and addresses, so that it can be recorded once and replayed (as a CUDA graph).
The graph is given all T places of the cache and puts its token after them; that token is then copied into the first
free place. Where in the cache a token stands does not matter: keys carry their rotary position, and masks, groups and
positions are told by place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from vtc.errors import InputError
from vtc.runtime.interface import Array, IntArray, LoadedGraph, Tensor

PAST, PRESENT = "past_key_values.", "present."
"""What names of a cache's tensors begin with, going into a graph and coming out."""
STEP = 128
"""Places that room comes in: a cache is replaced by one that has so many more when it is full."""


def cache_inputs(graph: LoadedGraph) -> list[str]:
    """Names of a segment's keys and values, in the order in which its graph takes them."""
    return [name for name in graph.inputs if name.startswith(PAST)]


class Places:
    """What caches share that grow by a token a step: masks and positions by place.

    Parameters
    ----------
    rows : int
    """

    def __init__(self, rows: int) -> None:
        self._mask: IntArray = np.zeros((rows, 0), dtype=np.int64)
        self._positions: IntArray | None = None

    def mask(self) -> IntArray:
        return np.concatenate([self._mask, np.ones_like(self._mask, shape=(len(self._mask), 1))], axis=1)

    def positions(self, here: IntArray) -> IntArray | None:
        return None if self._positions is None else np.concatenate([self._positions, here], axis=1)


class _Fed(Places):
    """What caches share that are fed to the graph: the names of their tensors.

    Parameters
    ----------
    graph : LoadedGraph
    shape : (int, int, int)
        Rows, heads and values of a head.
    """

    def __init__(self, graph: LoadedGraph, shape: tuple[int, int, int]) -> None:
        rows, heads, width = shape
        super().__init__(rows)
        self._graph = graph
        self._names = cache_inputs(graph)
        self._outputs = [name.replace(PAST, PRESENT, 1) for name in self._names]
        self.tensors: Sequence[Tensor] = [
            graph.empty(rows, heads, 0, width, dtype=graph.inputs[name]) for name in self._names
        ]

    def run(
        self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        outputs = self._graph.run({**feeds, **dict(zip(self._names, self.tensors, strict=True))}, host)
        named = dict(zip(self._graph.outputs, outputs, strict=True))
        present = [named.pop(name) for name in self._outputs]
        return named, present


class GrowingPast(_Fed):
    """A :class:`~vtc.runtime.interface.Past`: what the graph gave out is what it gets next.

    Parameters
    ----------
    graph : LoadedGraph
    shape : (int, int, int)
        Rows, heads and values of a head.
    """

    @property
    def length(self) -> int:
        return int(self.tensors[0].shape()[2])

    @property
    def bytes(self) -> int:
        """Size of the keys and values, from their tensors."""
        return sum(int(tensor.tensor_size_in_bytes()) for tensor in self.tensors)

    def begin(self, present: Sequence[Tensor], mask: IntArray, positions: IntArray | None) -> None:
        self.tensors, self._mask, self._positions = present, mask, positions

    def append(self, present: Sequence[Tensor], here: IntArray) -> None:
        self._mask, self._positions = self.mask(), self.positions(here)
        self.tensors = present


class Store(Protocol):
    """Where caches with room live."""

    def take(self, like: Sequence[Tensor], length: int) -> Sequence[Tensor]:
        """Tensors as `like` (B, Hkv, T, Dh), but with so many places, whose values are all finite."""

    def give_back(self, tensors: Sequence[Tensor]) -> None:
        """They are no longer needed."""

    def copy(self, source: Tensor, begin: int, count: int, target: Tensor, at: int) -> None:
        """Copy `count` places of (B, Hkv, T, Dh), from `begin` on, to `at` of a tensor with other places."""


class FixedPast(_Fed):
    """A :class:`~vtc.runtime.interface.Past` with room.

    Parameters
    ----------
    graph : LoadedGraph
    shape : (int, int, int)
        Rows, heads and values of a head.
    store : Store
    """

    def __init__(self, graph: LoadedGraph, shape: tuple[int, int, int], store: Store) -> None:
        super().__init__(graph, shape)
        self._store, self._most = store, graph.most_past
        self._taken: Sequence[Tensor] = ()
        self.length = 0

    def begin(self, present: Sequence[Tensor], mask: IntArray, positions: IntArray | None) -> None:
        self.length = int(mask.shape[1])
        self._mask, self._positions = mask, positions
        self._move(present)

    def __del__(self) -> None:
        if self._taken:
            self._store.give_back(self._taken)

    @property
    def places(self) -> int:
        """Tokens that there is room for, those in it included."""
        return int(self._mask.shape[1])

    @property
    def bytes(self) -> int:
        """Size of the keys and values of the tokens in it."""
        return sum(int(tensor.tensor_size_in_bytes()) for tensor in self.tensors) * self.length // self.places

    def append(self, present: Sequence[Tensor], here: IntArray) -> None:
        """See :class:`~vtc.runtime.interface.Past`.

        Raises
        ------
        InputError
            If there is no room left, and can be no more.
        """
        if self.length == self.places:
            self._move(self.tensors)
        # The graph saw the cache as it was, so its token stands after the places that there were then.
        added = int(present[0].shape()[2]) - 1
        for source, target in zip(present, self.tensors, strict=True):
            self._store.copy(source, added, 1, target, self.length)
        self._mask[:, self.length] = 1
        if self._positions is not None:
            self._positions[:, self.length] = here[:, 0]
        self.length += 1

    def _move(self, tensors: Sequence[Tensor]) -> None:
        """Copy what is in `tensors` to a cache with more room."""
        places = (self.length // STEP + 1) * STEP
        if self._most is not None:
            places = min(places, self._most)
        if places <= self.length:
            raise InputError(
                f"the answer needs more than the {places} tokens of cache that the engines take; ask for a shorter "
                "one (--max-new-tokens), or run vtc build with a larger --max-new-tokens"
            )
        room = self._store.take(tensors, places)
        for source, target in zip(tensors, room, strict=True):
            self._store.copy(source, 0, self.length, target, 0)
        if self._taken:
            self._store.give_back(self._taken)
        self.tensors = self._taken = room
        self._mask = _padded(self._mask[:, : self.length], places)
        self._positions = None if self._positions is None else _padded(self._positions[:, : self.length], places)


def _padded(values: IntArray, length: int) -> IntArray:
    return np.pad(values, ((0, 0), (0, length - values.shape[1])))

"""The KV cache of one segment where OpenVINO keeps it: in the request that runs a generation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from vtc.runtime.interface import Array, IntArray, Tensor
from vtc.runtime.openvino.graph import Graph
from vtc.runtime.past import Places


class KeptPast(Places):
    """A :class:`~vtc.runtime.interface.Past` that has no tensors: keys and values stay with OpenVINO.

    Parameters
    ----------
    graph : Graph
        The segment's.
    shape : (int, int, int)
        Rows, heads and values of a head.
    itemsize : int
        Bytes of a value.

    Attributes
    ----------
    tensors : ()
    length : int
    """

    def __init__(self, graph: Graph, shape: tuple[int, int, int], itemsize: int) -> None:
        rows, heads, width = shape
        super().__init__(rows)
        self._graph = graph
        self._request = graph.take(rows)
        self._bytes_of_token = 2 * graph.layers * rows * heads * width * itemsize
        self.tensors: Sequence[Tensor] = ()
        self.length = 0

    def __del__(self) -> None:
        if getattr(self, "_request", None) is not None:
            self._graph.give_back(self._request)

    @property
    def bytes(self) -> int:
        """Size of the keys and values of the tokens in it."""
        return self._bytes_of_token * self.length

    def run(
        self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        request, self._request = self._request, None  # a run that fails leaves it as it may be
        outputs = self._graph.run_in(request, feeds)
        self._request = request
        return dict(zip(self._graph.outputs, outputs, strict=True)), []

    def begin(self, present: Sequence[Tensor], mask: IntArray, positions: IntArray | None) -> None:
        self.length = int(mask.shape[1])
        self._mask, self._positions = mask, positions

    def append(self, present: Sequence[Tensor], here: IntArray) -> None:
        self._mask, self._positions = self.mask(), self.positions(here)
        self.length += 1

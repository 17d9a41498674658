"""Whether an ONNX graph's weights are numbers: NaN in one makes every answer nonsense, and no runtime says so."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vtc.bundle.external_data import StoredTensor, stored_tensors
from vtc.errors import BundleError

_FLOATS: dict[int, tuple[str, int, int]] = {
    1: ("<u4", 0x7FFFFFFF, 0x7F800000),
    10: ("<u2", 0x7FFF, 0x7C00),
    11: ("<u8", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    16: ("<u2", 0x7FFF, 0x7F80),
}
"""ONNX's number of float32, float16, float64 and bfloat16 → integers as wide, all bits but the sign, infinity's bits.

Without the sign, whatever is finite is below infinity, and NaN is above it.
"""
_AT_ONCE = 2**18
"""Bytes that are looked at together; they stay in the processor's cache."""


def check_weights(graph: Path) -> None:
    """Make sure that the weights and constants of a graph are numbers.

    An infinity alone may bound a mask and is let be; so are types of 8 bits and fewer.

    Parameters
    ----------
    graph : Path
        With files beside it that are known to belong to it.

    Raises
    ------
    BundleError
        If one holds NaN, or more than one value and infinity among them; or lies outside its file.
    """
    with _Files(graph) as files:
        for tensor in stored_tensors(graph, files.own):
            if tensor.type not in _FLOATS:
                continue
            spans = [(files.own, *span) for span in tensor.inside]
            if b"location" in tensor.outside:
                spans.append(files.outside(tensor))
            largest, size = _largest(tensor.type, spans)
            for begin, end in tensor.whole:
                whole = _whole_numbers(files.own[begin:end]) & np.uint64(_FLOATS[tensor.type][1])
                largest, size = max(largest, int(whole.max(initial=0))), size + whole.size
            infinity = _FLOATS[tensor.type][2]
            if largest > infinity or (largest == infinity and size > 1):
                raise BundleError(
                    f"{graph}: {tensor.name} holds {'NaN' if largest > infinity else 'infinity'}; export it again"
                )


def _largest(kind: int, spans: list[tuple[mmap.mmap, int, int]]) -> tuple[int, int]:
    """Bits of the largest value without its sign, and the number of values."""
    dtype, magnitude, _ = _FLOATS[kind]
    width, largest, size = int(dtype[-1]), 0, 0
    for data, begin, end in spans:
        for at in range(begin, end - width + 1, _AT_ONCE):
            part = np.frombuffer(data, dtype, min(_AT_ONCE, end - at) // width, at)
            largest = max(largest, int(np.max(part & magnitude)))
            size += part.size
            del part  # a file that something points into cannot be closed
    return largest, size


def _whole_numbers(data: bytes) -> NDArray[np.uint64]:
    """Numbers of protobuf's varints: seven bits in each byte, the lowest first, and a mark on all but the last."""
    parts = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(parts < 0x80)
    if not ends.size:
        return np.zeros(0, np.uint64)
    begins = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(ends[-1] + 1) - np.repeat(begins, ends - begins + 1)
    shifted = (parts[: ends[-1] + 1] & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(shifted, begins)


class _Files:
    """A graph's own file and those beside it, mapped into memory while open."""

    def __init__(self, graph: Path) -> None:
        self.graph = graph
        self._maps: dict[str, mmap.mmap] = {}

    def __enter__(self) -> _Files:
        self.own = self._map(self.graph.name)
        return self

    def __exit__(self, *_: object) -> None:
        for mapped in self._maps.values():
            mapped.close()

    def _map(self, name: str) -> mmap.mmap:
        if name not in self._maps:
            with (self.graph.parent / name).open("rb") as stream:
                try:
                    self._maps[name] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                except ValueError:  # an empty file cannot be mapped
                    raise BundleError(f"{self.graph.parent / name}: is empty; export it again") from None
        return self._maps[name]

    def outside(self, tensor: StoredTensor) -> tuple[mmap.mmap, int, int]:
        """Where values lie that a file beside the graph holds."""
        data = self._map(tensor.outside[b"location"].decode(errors="replace"))
        try:
            begin = int(tensor.outside.get(b"offset", b"0"))
            end = begin + int(tensor.outside[b"length"]) if b"length" in tensor.outside else len(data)
        except ValueError:
            begin, end = -1, -1
        if not 0 <= begin <= end <= len(data):
            raise BundleError(f"{self.graph}: {tensor.name} lies outside its file; export it again")
        return data, begin, end

"""Tensors of an ONNX graph, and files that it keeps them in, read from its bytes: the light install has no onnx.

An ONNX file is a protobuf message; only the parts that lead to tensors are looked at, and weights are passed over.
Field numbers are those of onnx.proto3 of ONNX 1.19 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vtc.errors import BundleError

_MARK = b"location"
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_MOST_DEPTH = 64
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_DIMS, _TYPE, _NAME, _ENTRY = 1, 2, 8, 13
_DATA = (4, 9, 10)
"""Fields of a tensor that hold its floats: as float32, as bytes, as float64."""
_WHOLE = 5
"""Field of a tensor that holds floats of 16 bits as the whole numbers of the same bits."""
_FLOAT, _FLOATS = 2, 7
"""Fields of an attribute: a float32, and several."""


_IN_FLOAT32 = {2: 4, 21: 8}
"""ONNX's number of uint8 and uint4 → how many times as many bytes their values take in float32."""


@dataclass
class StoredTensor:
    """Where an ONNX graph keeps a tensor.

    Attributes
    ----------
    name : str
    type : int
        Of ONNX's `TensorProto.DataType`.
    rank : int
        Number of its axes.
    inside : list of (int, int)
        Begin and end of its values in the graph's own file.
    whole : list of (int, int)
        The same of values that are kept as whole numbers.
    outside : dict of bytes to bytes
        Its entries of external data: `location`, `offset`, `length`.
    """

    name: str = ""
    type: int = 0
    rank: int = 0
    inside: list[tuple[int, int]] = field(default_factory=list)
    whole: list[tuple[int, int]] = field(default_factory=list)
    outside: dict[bytes, bytes] = field(default_factory=dict)


def external_files(graph: Path) -> set[str]:
    """Names of files, relative to the graph's own directory, that a graph's tensors are kept in.

    Raises
    ------
    BundleError
        If the file is no ONNX graph.
    """
    with graph.open("rb") as stream:
        if not graph.stat().st_size:
            return set()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(_MARK) < 0:
                return set()
            found = {tensor.outside.get(_MARK) for tensor in stored_tensors(graph, data)}
            return {location.decode(errors="replace") for location in found if location is not None}


def stacked_bytes(graph: Path) -> int:
    """Bytes of a graph's matrices that are stacked, as those of experts, in files beside it.

    Raises
    ------
    BundleError
        If the file is no ONNX graph.
    """
    return sum(size for _, size in _stacks(graph))


def widened_bytes(graph: Path) -> int:
    """Bytes in float32 of the two largest stacks of matrices that are whole numbers, such as a layer's experts.

    Raises
    ------
    BundleError
        If the file is no ONNX graph.
    """
    return sum(sorted(_IN_FLOAT32[kind] * size for kind, size in _stacks(graph) if kind in _IN_FLOAT32)[-2:])


def _stacks(graph: Path) -> list[tuple[int, int]]:
    """Type and bytes of each tensor of three axes in a file beside the graph."""
    with graph.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found: dict[tuple[bytes, bytes], tuple[int, int]] = {}  # a stack may be the beginning of another
        for tensor in stored_tensors(graph, data):
            if tensor.rank == 3:
                place = tensor.outside.get(_MARK, b""), tensor.outside.get(b"offset", b"0")
                size = int(tensor.outside.get(b"length", b"0"))
                found[place] = max(found.get(place, (tensor.type, 0)), (tensor.type, size))
        return list(found.values())


def stored_tensors(graph: Path, data: mmap.mmap) -> list[StoredTensor]:
    """Every tensor of a graph: initializers, and attributes of nodes, lone numbers too.

    Parameters
    ----------
    graph : Path
        What to call it in an error.
    data : mmap
        Its bytes.

    Raises
    ------
    BundleError
        If it is no ONNX graph.
    """
    try:
        return list(_tensors(data, "model", 0, len(data), 0))
    except (ValueError, IndexError, RecursionError):
        raise BundleError(f"{graph}: is not an ONNX graph; export it again") from None


def _tensors(data: mmap.mmap, part: str, begin: int, end: int, depth: int) -> Iterator[StoredTensor]:
    if depth > _MOST_DEPTH:
        raise ValueError("nested too deep")
    parts = _PARTS[part]
    if part == "attribute":
        yield _numbers(data, begin, end)
    for number, kind, first, last in _fields(data, begin, end):
        inner = parts.get(number) if kind == _BYTES else None
        if inner == "tensor":
            yield _tensor(data, first, last)
        elif inner is not None:
            yield from _tensors(data, inner, first, last, depth + 1)


def _numbers(data: mmap.mmap, begin: int, end: int) -> StoredTensor:
    """The floats that an attribute holds itself, as a tensor of them."""
    found = StoredTensor(type=1)
    for number, kind, first, last in _fields(data, begin, end):
        if kind == _BYTES and number == 1:
            found.name = data[first:last].decode(errors="replace")
        elif (number == _FLOAT and kind == _FOUR) or (number == _FLOATS and kind in (_FOUR, _BYTES)):
            found.inside.append((first, last))
    return found


def _tensor(data: mmap.mmap, begin: int, end: int) -> StoredTensor:
    found = StoredTensor()
    for number, kind, first, last in _fields(data, begin, end):
        if kind == _VARINT and number == _TYPE:
            found.type, _ = _varint(data, first)
        elif number == _DIMS and kind == _VARINT:
            found.rank += 1
        elif number == _DIMS and kind == _BYTES:  # one byte of each number ends it
            found.rank += sum(byte < 128 for byte in data[first:last])
        elif kind == _BYTES and number == _NAME:
            found.name = data[first:last].decode(errors="replace")
        elif kind == _BYTES and number == _ENTRY:
            entry = {key: data[start:stop] for key, _, start, stop in _fields(data, first, last)}
            found.outside[entry.get(1, b"")] = entry.get(2, b"")
        elif number == _WHOLE and kind in (_VARINT, _BYTES):
            found.whole.append((first, last))
        elif number in _DATA and kind != _VARINT:
            found.inside.append((first, last))
    return found


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, kind, begin and end of each field of a message."""
    while at < end:
        key, at = _varint(data, at)
        kind, begin = key & 7, at
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _EIGHT:
            at += 8
        elif kind == _FOUR:
            at += 4
        elif kind == _BYTES:
            length, begin = _varint(data, at)
            at = begin + length
        else:
            raise ValueError("not protobuf")
        if at > end:
            raise ValueError("cut off")
        yield key >> 3, kind, begin, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("not protobuf")

"""Files that an ONNX graph keeps its weights in, read from its bytes: the light install has no onnx.

An ONNX file is a protobuf message; only the parts that lead to tensors are looked at, and weights are passed over.
Field numbers are those of onnx.proto3 of ONNX 1.19 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
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
    "tensor": {13: "entry"},
}
_MOST_DEPTH = 64
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


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
            try:
                return set(_locations(data, "model", 0, len(data), 0))
            except (ValueError, IndexError, RecursionError):
                raise BundleError(f"{graph}: is not an ONNX graph; export it again") from None


def _locations(data: mmap.mmap, part: str, begin: int, end: int, depth: int) -> Iterator[str]:
    if depth > _MOST_DEPTH:
        raise ValueError("nested too deep")
    for number, first, last in _fields(data, begin, end):
        inner = _PARTS[part].get(number)
        if inner == "entry":
            entry = {field: data[start:stop] for field, start, stop in _fields(data, first, last)}
            if entry.get(1) == _MARK:
                yield entry.get(2, b"").decode()
        elif inner is not None:
            yield from _locations(data, inner, first, last, depth + 1)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field of a message that holds bytes."""
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _EIGHT:
            at += 8
        elif kind == _FOUR:
            at += 4
        elif kind == _BYTES:
            length, at = _varint(data, at)
            if length > end - at:
                raise ValueError("cut off")
            yield key >> 3, at, at + length
            at += length
        else:
            raise ValueError("not protobuf")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("not protobuf")

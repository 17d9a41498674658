"""What a vision graph has made of images, kept so that the same images need not be encoded again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np

from vtc.runtime.interface import Array

Value = TypeVar("Value")


class ImageCache(Generic[Value]):
    """Values by the content of a graph's inputs; the one longest unused leaves first. Threads may share it.

    Parameters
    ----------
    most : int
        Bytes of all values together; 0 keeps none.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._values: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Value | None:
        """The value of a key, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: bytes, value: Value, size: int) -> None:
        """Keep a value of `size` bytes, unless it alone is more than may be kept."""
        with self._lock:
            if key in self._values or size > self.most:
                return
            self._values[key] = value, size
            self.held += size
            while self.held > self.most:
                self.held -= self._values.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Let go of all values."""
        with self._lock:
            self._values.clear()
            self.held = 0


def content_key(graph: str, feeds: Mapping[str, Array]) -> bytes:
    """SHA-256 of a graph's name and of its inputs: names, dtypes, shapes and values."""
    digest = hashlib.sha256(graph.encode())
    for name, value in feeds.items():
        digest.update(f"|{name} {value.dtype} {value.shape}|".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.digest()

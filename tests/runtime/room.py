"""Caches with room in ONNX Runtime's host memory: what engines have on a GPU, where no GPU is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vtc.runtime import past
from vtc.runtime.interface import DTYPES, Tensor
from vtc.runtime.onnxruntime.backend import OnnxRuntime
from vtc.runtime.onnxruntime.graph import Graph
from vtc.runtime.onnxruntime.providers import import_onnxruntime
from vtc.runtime.past import FixedPast


class HostStore:
    """Caches as numpy arrays that ONNX Runtime reads in place.

    Attributes
    ----------
    taken, given_back : int
        Tensors so far.
    """

    def __init__(self) -> None:
        self.taken = self.given_back = 0

    def take(self, like: Sequence[Tensor], length: int) -> list[Tensor]:
        rows: list[Tensor] = []
        for tensor in like:
            batch, heads, _, width = tensor.shape()
            values = np.zeros((batch, heads, length, width), dtype=DTYPES[tensor.data_type()])
            value: Any = import_onnxruntime().OrtValue.ortvalue_from_numpy(values)
            value.values = values
            rows.append(value)
        self.taken += len(rows)
        return rows

    def give_back(self, tensors: Sequence[Tensor]) -> None:
        self.given_back += len(tensors)

    def copy(self, source: Tensor, begin: int, count: int, target: Any, at: int) -> None:
        target.values[:, :, at : at + count] = source.numpy()[:, :, begin : begin + count]


def give_room(patch: pytest.MonkeyPatch, step: int) -> HostStore:
    """Let ONNX Runtime have caches with room, `step` places more whenever one is full."""
    store = HostStore()

    def cache(self: OnnxRuntime, graph: Graph, shape: tuple[int, int, int], most: int) -> FixedPast:
        return FixedPast(graph, shape, store)

    patch.setattr(OnnxRuntime, "past", cache)
    patch.setattr(past, "STEP", step)
    return store

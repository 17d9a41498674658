"""Two graphs of one decoder segment: its own for prompts, and one for a token of each row."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vtc.runtime.interface import Array, Tensor
from vtc.runtime.onnxruntime.graph import Graph


class WithSteps:
    """A segment's graph and the one for steps: a :class:`~vtc.runtime.interface.LoadedGraph`, which says the rest.

    Both take and give the same, so that a cache goes from one to the other as it is.

    Parameters
    ----------
    whole : Graph
    step : Graph
    rows : int
        Rows of one token up to which `step` is run.
    """

    def __init__(self, whole: Graph, step: Graph, rows: int) -> None:
        self.whole, self.step, self._rows = whole, step, rows
        self.inputs, self.outputs, self.most_past = whole.inputs, whole.outputs, whole.most_past
        self._hidden = next(iter(whole.inputs))
        self._ran = threading.local()

    @property
    def run_ms(self) -> float:
        ran: Graph = getattr(self._ran, "graph", self.whole)
        return ran.run_ms

    def run(self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()) -> list[Tensor]:
        hidden: Any = feeds[self._hidden]
        rows, new, _ = hidden.shape if isinstance(hidden, np.ndarray) else hidden.shape()
        self._ran.graph = graph = self.step if new == 1 and rows <= self._rows else self.whole
        return graph.run(feeds, host)

    def empty(self, *shape: int, dtype: type[np.generic]) -> Tensor:
        return self.whole.empty(*shape, dtype=dtype)

"""TensorRT as a backend: a bundle's engines on one GPU, where tensors stay from the pixels to the logits.

What comes to the host is what the host decides on: which visual tokens stay (for their positions), and logits (for the
next token). The step of a token is recorded as a CUDA graph and replayed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vtc.bundle.engines import EngineSet, Limits
from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError, InputError
from vtc.runtime.interface import Array, LoadedGraph, Past, Result, Tensor
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.past import FixedPast
from vtc.runtime.tensorrt.device import BYTES, DeviceStore, DeviceTensor
from vtc.runtime.tensorrt.engine import EngineGraph, Machine
from vtc.runtime.tensorrt.engine_sets import choose_engines
from vtc.runtime.tensorrt.recording import Recording

RECORDINGS = 4
"""Recorded steps that are kept; each holds memory for one step's results, which are as large as its cache."""

LIMITS = {
    "batch": ("prompts at a time", "--max-batch"),
    "images": ("images in a prompt", "--max-images"),
    "text": ("text tokens in a prompt", "--max-text"),
    "new_tokens": ("tokens of an answer", "--max-new-tokens"),
}
"""Of each limit, what it counts and the option of `vtc build` that sets it."""


class TensorRT:
    """A bundle's engines: a :class:`~vtc.runtime.interface.Backend`, which says what its methods do.

    Parameters
    ----------
    engines : EngineSet
    machine : Machine
    """

    def __init__(self, engines: EngineSet, machine: Machine) -> None:
        self.engines, self.machine = engines, machine
        self.provider = engines.library
        self.precision = self.exported = self.variant = engines.precision
        self.lock = threading.RLock()  # one stream, one scratch memory, contexts that hold their last run's shapes
        self._store = DeviceStore(machine.pool)
        self._recordings: OrderedDict[Hashable, Recording[Any]] = OrderedDict()
        machine.pool.relieve += [self._recordings.clear, self._store.clear]

    @classmethod
    def load(cls, manifest: Manifest, options: RuntimeOptions) -> TensorRT:
        """Load the engines of a bundle that run here; see :func:`~vtc.runtime.tensorrt.engine_sets.choose_engines`."""
        chosen = choose_engines(manifest, options.engines, options.precision, verify=options.verify)
        return cls(chosen.engines, Machine(chosen.library, chosen.cuda))

    def open(self, graph: str) -> EngineGraph:
        path = self.engines.file(graph)
        return EngineGraph(self.machine, path, self.engines.engines[graph])

    def admit(self, needed: Limits) -> None:
        for name, (what, option) in LIMITS.items():
            most, asked = getattr(self.engines.limits, name), getattr(needed, name)
            if asked > most:
                raise InputError(
                    f"{asked} {what} are more than the {most} that the engines in {self.engines.root} were built for; "
                    f"ask for fewer, or run vtc build with {option} {asked}"
                )

    def place(self, embeds: Tensor, features: Tensor, where: NDArray[np.bool_]) -> Tensor:
        """On the GPU, into `embeds` itself."""
        into, rows = cast(DeviceTensor, embeds), cast(DeviceTensor, features)
        if (into.data_type(), into.shape()[-1]) != (rows.data_type(), rows.shape()[-1]):
            raise BundleError(f"{self.engines.root}: embeddings and features do not match; run vtc build again")
        row = into.shape()[-1] * BYTES[into.data_type()]
        edges = np.flatnonzero(np.diff(where.reshape(-1).astype(np.int8), prepend=0, append=0)).tolist()
        copied = 0
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            size = (end - begin) * row
            self.machine.cuda.copy(into.address + begin * row, rows.address + copied, size)
            copied += size
        return into

    def past(self, graph: LoadedGraph, shape: tuple[int, int, int], most: int) -> Past:
        """A cache with room, so that every step is the same work."""
        return FixedPast(graph, shape, self._store)

    def repeat(
        self,
        fixed: Sequence[Tensor],
        arrays: Mapping[str, Array],
        program: Callable[[Mapping[str, Array | Tensor]], Result],
    ) -> Result:
        tensors = cast(Sequence[DeviceTensor], fixed)
        key = (
            tuple((tensor.address, tensor.shape()) for tensor in tensors),
            tuple((name, values.shape) for name, values in arrays.items()),
        )
        recording: Recording[Result] | None = self._recordings.get(key)
        if recording is not None:
            self._recordings.move_to_end(key)
            return recording.again(arrays, program)
        recording = Recording(self.machine, arrays, program)
        self._recordings[key] = recording
        if len(self._recordings) > RECORDINGS:
            self._recordings.popitem(last=False)
        return recording.result

"""A graph in OpenVINO, and the requests that run it."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtc.bundle.interface import Shapes
from vtc.errors import BundleError
from vtc.machine import machine_fault
from vtc.runtime.interface import DTYPES, Array, Tensor
from vtc.runtime.openvino.device import core, import_openvino
from vtc.runtime.openvino.rewriting import keep_cache, name_of, repeat_for_experts, take_first_of_equals
from vtc.runtime.past import PAST
from vtc.runtime.quiet import quiet_stderr

IDLE = 4
"""Requests of a graph that are kept when none needs them; each holds the memory of the longest cache that it had."""
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class HostTensor:
    """An array as a :class:`~vtc.runtime.interface.Tensor`, which says what its methods do.

    Parameters
    ----------
    values : array
    """

    def __init__(self, values: Array) -> None:
        self.values = values

    def shape(self) -> Sequence[int]:
        return self.values.shape

    def data_type(self) -> str:
        return _NAMES[self.values.dtype]

    def tensor_size_in_bytes(self) -> int:
        return self.values.nbytes

    def numpy(self) -> Array:
        return self.values


class Graph:
    """A graph, compiled: a :class:`~vtc.runtime.interface.LoadedGraph`, which says what its methods do.

    A decoder segment keeps its cache in the request that runs it, so that the cache is no input and no output.

    Parameters
    ----------
    path : Path
    device : str
        OpenVINO's name of it.
    properties : dict
        How it is compiled.
    cache : (int, int)
        Heads of a segment's cache, and values of one.

    Attributes
    ----------
    fused : int
        Layers whose cache the device may keep in place.
    most_past : None
        Caches may be of any length.

    Raises
    ------
    BundleError
        If OpenVINO cannot load it.
    """

    def __init__(self, path: Path, device: str, properties: Mapping[str, Any], cache: tuple[int, int]) -> None:
        self._path, self._cache = path, cache
        try:
            with quiet_stderr():
                model = core().read_model(str(path))
                self.shapes = _shapes(model.get_parameters()), _shapes(model.get_results())
                self.layers = sum(name.startswith(PAST) for name in self.shapes[0]) // 2
                take_first_of_equals(model)
                repeat_for_experts(model)
                self.fused, self._emptied = keep_cache(model, *cache)
                # A compiled graph may know a tensor by several names.
                self.inputs = {
                    name_of(node): node.get_element_type().to_dtype().type for node in model.get_parameters()
                }
                self.outputs = [name_of(node) for node in model.get_results()]
                self._compiled = _compiled(model, device, properties)
        except RuntimeError as error:
            raise machine_fault(error, path) or BundleError(
                f"{path}: OpenVINO cannot load the graph ({_reason(error)})"
            ) from error
        self._places = {name: place for place, name in enumerate(self.inputs)}
        self.most_past: int | None = None
        self._idle: list[Any] = []
        self._last = threading.local()

    @property
    def run_ms(self) -> float:
        return float(getattr(self._last, "run_ms", 0.0))

    def run(self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()) -> list[Tensor]:
        request = self.take()
        outputs = self.run_in(request, feeds)
        self.give_back(request)
        return outputs

    def take(self, rows: int = 0) -> Any:
        """A request of the caller's own, with an empty cache for so many rows."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        if self._emptied:
            heads, width = self._cache
            for state in request.query_state():
                if state.name in self._emptied:
                    state.state = import_openvino().Tensor(state.state.element_type, [rows, heads, 0, width])
        return request

    def give_back(self, request: Any) -> None:
        """It is no longer needed, nor is its cache."""
        if len(self._idle) < IDLE:
            if self.layers:
                request.reset_state()
            self._idle.append(request)

    def run_in(self, request: Any, feeds: Mapping[str, Array | Tensor]) -> list[Tensor]:
        """Run the graph with the cache of a request, which grows by the tokens that are fed.

        Raises
        ------
        BundleError
            If it cannot be run; the request is then of no more use.
        """
        given = {
            self._places[name]: np.ascontiguousarray(
                value if isinstance(value, np.ndarray) else value.numpy(), self.inputs[name]
            )
            for name, value in feeds.items()
        }
        begin = time.perf_counter()
        try:
            outputs = request.infer(given, share_inputs=True)
        except RuntimeError as error:
            raise machine_fault(error, self._path) or BundleError(
                f"{self._path}: OpenVINO cannot run the graph ({_reason(error)})"
            ) from error
        self._last.run_ms = (time.perf_counter() - begin) * 1000
        return [HostTensor(outputs[number]) for number in range(len(self.outputs))]

    def empty(self, *shape: int, dtype: type[np.generic]) -> Tensor:
        return HostTensor(np.zeros(shape, dtype=dtype))


def _shapes(nodes: Sequence[Any]) -> Shapes:
    shapes = {name_of(node): node.get_output_partial_shape(0) for node in nodes}
    return {
        name: [int(size.get_length()) if size.is_static else None for size in shape] if shape.rank.is_static else []
        for name, shape in shapes.items()
    }


def _reason(error: RuntimeError) -> str:
    """What OpenVINO says of an error, in one line: the last of its lines; those before say where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _compiled(model: Any, device: str, properties: Mapping[str, Any]) -> Any:
    try:
        return core().compile_model(model, device, dict(properties))
    except RuntimeError as error:
        # The pass by which whole numbers are multiplied fails where parts of a rounded value are put together
        # (OpenVINO 2026.4); without it the graph computes the same in floats.
        if "CALLBACK HAS THROWN" not in str(error) or device != "CPU":
            raise
        return core().compile_model(model, device, {**properties, "LP_TRANSFORMS_MODE": False})

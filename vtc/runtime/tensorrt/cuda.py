"""The few calls of the CUDA runtime that engines need, on one stream; through NVIDIA's `cuda-python`, without torch.

Everything is queued on one stream and runs in the order it was queued in; so memory may be used again as soon as its
last use is queued. Nothing in here knows of tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from vtc.errors import InputError, MissingDependency, VtcError

Array = NDArray[Any]


class OutOfMemory(VtcError):
    """The GPU has no memory left for what is asked."""


class Recorded:
    """Work that was recorded as a CUDA graph.

    Parameters
    ----------
    cuda : Cuda
    graph : cudaGraphExec_t
    """

    def __init__(self, cuda: Cuda, graph: Any) -> None:
        self._cuda, self._graph = cuda, graph

    def launch(self) -> None:
        """Queue it."""
        self._cuda.call("cudaGraphLaunch", self._graph, self._cuda.stream)

    def __del__(self) -> None:
        self._cuda.discard("cudaGraphExecDestroy", self._graph)


class Cuda:
    """The first GPU, and a stream on it.

    Attributes
    ----------
    stream : int
        Its handle.

    Raises
    ------
    MissingDependency
        If `cuda-python` is not installed.
    InputError
        If there is no GPU, or its driver is older than `cuda-python`.
    """

    def __init__(self) -> None:
        try:
            self._api: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise MissingDependency(
                f"cuda-python cannot be imported ({error}): pip install cuda-python, or 'cuda-python<13' for a driver "
                "of CUDA 12"
            ) from error
        try:
            self.stream = int(self.call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking))
        except VtcError as error:
            raise InputError(
                f"{error}; cuda-python must be of a CUDA version that the driver knows: for one of CUDA 12, "
                "pip install 'cuda-python<13'"
            ) from error
        self._kinds = self._api.cudaMemcpyKind

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; its result, if it has one.

        Raises
        ------
        OutOfMemory
            If that is what the call says.
        VtcError
            If it says anything else than that it worked.
        """
        status, *results = getattr(self._api, name)(*arguments)
        if status != self._api.cudaError_t.cudaSuccess:
            text = self._api.cudaGetErrorString(status)[1]
            reason = text.decode() if isinstance(text, bytes) else str(text)
            short = status == self._api.cudaError_t.cudaErrorMemoryAllocation
            raise (OutOfMemory if short else VtcError)(f"CUDA: {name} failed: {reason}")
        return results[0] if results else None

    def discard(self, name: str, handle: Any) -> None:
        """Destroy something; late in the life of a process that may no longer be possible, and no longer matters."""
        getattr(self._api, name)(handle)

    # Memory -----------------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """Address of so many bytes on the GPU."""
        return int(self.call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give memory back, once everything queued is done."""
        self.discard("cudaFree", address)

    def clear(self, address: int, size: int) -> None:
        """Queue: set bytes to 0."""
        self.call("cudaMemsetAsync", address, 0, size, self.stream)

    def upload(self, address: int, values: Array) -> None:
        """Queue: copy a contiguous array to the GPU. It may be changed afterwards: CUDA has taken a copy by then."""
        kind = self._kinds.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, values.ctypes.data, values.nbytes, kind, self.stream)

    def download(self, values: Array, address: int) -> None:
        """Fill a contiguous array from the GPU, once everything queued is done."""
        kind = self._kinds.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", values.ctypes.data, address, values.nbytes, kind, self.stream)
        self.call("cudaStreamSynchronize", self.stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Queue: copy bytes on the GPU."""
        self.call("cudaMemcpyAsync", target, source, size, self._kinds.cudaMemcpyDeviceToDevice, self.stream)

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        """Queue: copy rows of `width` bytes on the GPU, which begin so many bytes (their pitch) after one another."""
        kind = self._kinds.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, rows, kind, self.stream)

    # Time -------------------------------------------------------------------------------------------------------

    def event(self) -> Any:
        """A mark that can be put into the queue."""
        return self.call("cudaEventCreate")

    def mark(self, event: Any) -> None:
        """Queue a mark."""
        self.call("cudaEventRecord", event, self.stream)

    def elapsed(self, begin: Any, end: Any) -> float:
        """Milliseconds between two marks, once the second is reached."""
        self.call("cudaEventSynchronize", end)
        return float(self.call("cudaEventElapsedTime", begin, end))

    # Graphs -----------------------------------------------------------------------------------------------------

    def record(self, program: Callable[[], Any]) -> Recorded:
        """What a program queues, as a CUDA graph; it is not run. It must neither allocate memory nor wait."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        try:
            program()
        except BaseException:
            # A capture must be ended, whatever came of it, before the stream can be used again.
            self._api.cudaStreamEndCapture(self.stream)
            raise
        graph = self.call("cudaStreamEndCapture", self.stream)
        try:
            return Recorded(self, self.call("cudaGraphInstantiate", graph, 0))
        finally:
            self.discard("cudaGraphDestroy", graph)

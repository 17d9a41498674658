"""Calls of the CUDA runtime are made as it declares them, and what it refuses is one line; no GPU is asked."""

from __future__ import annotations

import sys
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime.nvidia import FakeCuda
from vtc.errors import MissingDependency, VtcError
from vtc.runtime.tensorrt.cuda import Cuda, OutOfMemory, Recorded
from vtc.runtime.tensorrt.device import ALIGNMENT, DeviceTensor, Pool, block_size


class Status(Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100


# Number of arguments and of results, as in cuda-python 12.6 to 13.5.
DECLARED = {
    "cudaStreamCreateWithFlags": (1, 1),
    "cudaMalloc": (1, 1),
    "cudaFree": (1, 0),
    "cudaMemsetAsync": (4, 0),
    "cudaMemcpyAsync": (5, 0),
    "cudaMemcpy2DAsync": (8, 0),
    "cudaStreamSynchronize": (1, 0),
    "cudaEventCreate": (0, 1),
    "cudaEventRecord": (2, 0),
    "cudaEventSynchronize": (1, 0),
    "cudaEventElapsedTime": (2, 1),
    "cudaStreamBeginCapture": (2, 0),
    "cudaStreamEndCapture": (1, 1),
    "cudaGraphInstantiate": (2, 1),
    "cudaGraphLaunch": (2, 0),
    "cudaGraphDestroy": (1, 0),
    "cudaGraphExecDestroy": (1, 0),
}


class Api(SimpleNamespace):
    """The module ``cuda.bindings.runtime``: notes calls, and answers with handles."""

    def __init__(self) -> None:
        super().__init__(
            cudaError_t=Status,
            cudaMemcpyKind=SimpleNamespace(
                cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
            ),
            cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
            cudaStreamNonBlocking=1,
        )
        self.calls: list[str] = []
        self.failing: dict[str, Status] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in DECLARED:
            raise AttributeError(name)
        takes, gives = DECLARED[name]

        def call(*arguments: Any) -> tuple[Any, ...]:
            assert len(arguments) == takes, name
            self.calls.append(name)
            status = self.failing.get(name, Status.cudaSuccess)
            return status, *[8 if status is Status.cudaSuccess else None] * gives

        return call

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:
        return Status.cudaSuccess, f"no luck with {status.value}".encode()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    """A CUDA runtime that does nothing."""
    found = Api()
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", found)
    return found


def test_every_call_is_declared_so(api: Api) -> None:
    cuda = Cuda()
    assert cuda.stream == 8
    values = np.zeros(4, dtype=np.float32)
    cuda.upload(cuda.allocate(16), values)
    cuda.download(values, 8)
    cuda.clear(8, 16)
    cuda.copy(8, 8, 16)
    cuda.copy_rows(8, 32, 8, 64, 16, 2)
    begin = cuda.event()
    cuda.mark(begin)
    assert cuda.elapsed(begin, cuda.event()) == 8.0
    recorded = cuda.record(lambda: cuda.copy(8, 8, 16))
    assert isinstance(recorded, Recorded)
    recorded.launch()
    del recorded
    cuda.free(8)
    assert set(api.calls) == set(DECLARED)


def test_failed_recording_is_ended_and_says_why(api: Api) -> None:
    cuda = Cuda()

    def program() -> None:
        raise VtcError("TensorRT refuses")

    with pytest.raises(VtcError, match="TensorRT refuses"):
        cuda.record(program)
    assert api.calls[-1] == "cudaStreamEndCapture"


def test_what_cuda_refuses_is_one_line(api: Api) -> None:
    cuda = Cuda()
    api.failing["cudaMalloc"] = Status.cudaErrorMemoryAllocation
    with pytest.raises(OutOfMemory, match="CUDA: cudaMalloc failed: no luck with 2"):
        cuda.allocate(16)
    api.failing["cudaStreamCreateWithFlags"] = Status.cudaErrorNoDevice
    with pytest.raises(VtcError, match=r"cudaStreamCreateWithFlags failed: no luck with 100; cuda-python must be"):
        Cuda()


def test_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependency, match=r"cuda-python cannot be imported .*pip install cuda-python"):
        Cuda()


def test_blocks_are_aligned_and_waste_little() -> None:
    for size in (0, 1, 511, 512, 513, 5000, 10**6, 12345678, 10**9):
        block = block_size(size)
        assert block % ALIGNMENT == 0
        assert size <= block <= max(size * 1.126, size + ALIGNMENT)


def test_memory_is_used_again() -> None:
    cuda = FakeCuda()
    pool = Pool(cuda)  # type: ignore[arg-type]
    for _ in range(5):
        DeviceTensor.of(pool, np.ones((3, 700)), np.float16)
    assert cuda.allocations == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.int32, np.bool_])
def test_tensors_come_back_as_they_went(dtype: type[np.generic]) -> None:
    pool = Pool(FakeCuda())  # type: ignore[arg-type]
    values = np.arange(12).reshape(3, 4).astype(dtype)
    tensor = DeviceTensor.of(pool, values, dtype)
    np.testing.assert_array_equal(tensor.numpy(), values)
    assert tensor.numpy().dtype == dtype
    assert tensor.tensor_size_in_bytes() == values.nbytes


def test_bfloat16_comes_back_in_float32() -> None:
    pool = Pool(FakeCuda())  # type: ignore[arg-type]
    values = np.array([1.5, -2.0, 0.0078125], dtype=np.float32)
    tensor = DeviceTensor(pool, (3,), "tensor(bfloat16)")
    pool.cuda.upload(tensor.address, (values.view(np.uint32) >> 16).astype(np.uint16))
    np.testing.assert_array_equal(tensor.numpy(), values)

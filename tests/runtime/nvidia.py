"""Stand-ins for a GPU and for TensorRT, so that all that is written for them can be run and held to their rules.

The GPU is host memory: what is queued is done at once, unless it is being recorded. Rules that a real one punishes
with wrong results or a crash are assertions here: memory is only touched where it was allocated, memory that was given
back holds NaN, nothing is allocated or waited for in a recording. TensorRT is ONNX Runtime on the graph that an engine
names, with an execution context's rules: shapes inside its profile, an address for every tensor, and no other shapes or
addresses once it was recorded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from exporters.device import graph_inputs
from exporters.tensorrt.profiles import profiles
from vtc import __version__
from vtc.artifact import staging_dir
from vtc.bundle.engines import Limits, engines_dir, write_engines
from vtc.bundle.manifest import load_manifest
from vtc.runtime.nvidia import Gpu
from vtc.runtime.tensorrt import engine_sets
from vtc.runtime.tensorrt.cuda import OutOfMemory
from vtc.runtime.tensorrt.device import Pool

Array = NDArray[Any]
VERSION = "10.9.8"
LIMITS = Limits(batch=4, images=2, text=40, new_tokens=16)


class FakeRecorded:
    """Recorded work."""

    def __init__(self, cuda: FakeCuda, work: list[Callable[[], None]]) -> None:
        self._cuda, self._work = cuda, work

    def launch(self) -> None:
        self._cuda.launches += 1
        for step in self._work:
            step()


class FakeCuda:
    """A GPU, as :class:`vtc.runtime.tensorrt.cuda.Cuda` shows it.

    Attributes
    ----------
    capacity : int
        Bytes that can be allocated.
    used : int
        Bytes that are.
    downloads : list of int
        Bytes of each copy to the host.
    launches, allocations : int
    """

    def __init__(self, capability: str = "8.6", capacity: int = 2**30) -> None:
        self.capability, self.capacity = capability, capacity
        self.stream = 7
        self.used = self.launches = self.allocations = 0
        self.downloads: list[int] = []
        self._memory: dict[int, Array] = {}
        self._recording: list[Callable[[], None]] | None = None

    @property
    def recording(self) -> bool:
        """Whether what is queued is recorded."""
        return self._recording is not None

    def queue(self, step: Callable[[], None]) -> None:
        """Do something now, or whenever the recording is launched."""
        if self._recording is None:
            step()
        else:
            self._recording.append(step)

    def at(self, address: int, size: int) -> Array:
        """Bytes of allocated memory."""
        assert size >= 0
        for begin, values in self._memory.items():
            if begin <= address and address + size <= begin + values.nbytes:
                return values[address - begin : address - begin + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def allocate(self, size: int) -> int:
        assert not self.recording, "allocates in a recording"
        if self.used + size > self.capacity:
            raise OutOfMemory("CUDA: cudaMalloc failed: out of memory")
        values = np.full(size + 512, 0xFF, dtype=np.uint8)  # NaN, whatever the type
        begin = -values.ctypes.data % 512
        values = values[begin : begin + size]
        self._memory[values.ctypes.data] = values
        self.used += size
        self.allocations += 1
        return int(values.ctypes.data)

    def free(self, address: int) -> None:
        assert not self.recording, "frees in a recording"
        self.used -= self._memory.pop(address).nbytes

    def clear(self, address: int, size: int) -> None:
        self.queue(lambda: self.at(address, size).fill(0))

    def upload(self, address: int, values: Array) -> None:
        assert not self.recording, "copies from pageable memory in a recording"
        self.at(address, values.nbytes)[:] = values.reshape(-1).view(np.uint8)

    def download(self, values: Array, address: int) -> None:
        assert not self.recording, "waits in a recording"
        self.downloads.append(values.nbytes)
        values.reshape(-1).view(np.uint8)[:] = self.at(address, values.nbytes)

    def copy(self, target: int, source: int, size: int) -> None:
        def step() -> None:
            self.at(target, size)[:] = self.at(source, size)

        self.queue(step)

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        assert 0 < width <= min(target_pitch, source_pitch)
        for row in range(rows):
            self.copy(target + row * target_pitch, source + row * source_pitch, width)

    def event(self) -> object:
        return object()

    def mark(self, event: object) -> None:
        assert not self.recording, "marks in a recording"

    def elapsed(self, begin: object, end: object) -> float:
        return 0.5

    def record(self, program: Callable[[], Any]) -> FakeRecorded:
        self._recording = []
        try:
            program()
            return FakeRecorded(self, self._recording)
        finally:
            self._recording = None


# TensorRT -----------------------------------------------------------------------------------------------------------


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 2
    INT64 = 3
    INT32 = 4
    BOOL = 5


ELEMENTS = {
    onnx.TensorProto.FLOAT: (DataType.FLOAT, np.float32),
    onnx.TensorProto.FLOAT16: (DataType.HALF, np.float16),
    onnx.TensorProto.INT64: (DataType.INT64, np.int64),
    onnx.TensorProto.BOOL: (DataType.BOOL, np.bool_),
}


class ExecutionContextAllocationStrategy(Enum):
    USER_MANAGED = 2


class CudaGraphStrategy(Enum):
    WHOLE_GRAPH_CAPTURE = 1


class FakeConfig:
    """How a context of TensorRT for RTX is made."""

    cuda_graph_strategy: CudaGraphStrategy | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy


class FakeContext:
    """Runs an engine; see the module."""

    def __init__(self, engine: FakeEngine, captures: bool) -> None:
        self._engine, self._captures = engine, captures
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._profile: int | None = None
        self._memory = (0, 0)
        self._frozen = False

    def set_device_memory(self, address: int, size: int) -> None:
        self._engine.cuda.at(address, size)
        self._memory = address, size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == self._engine.cuda.stream
        self._profile = profile
        return 0 <= profile < len(self._engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None
        assert not self._frozen, "changes a context that was recorded"
        least, _, most = self._engine.profiles[self._profile][name]
        self._shapes[name] = shape
        return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine.inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._engine.shapes_of(self._shapes)[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert not self._frozen or self._addresses.get(name) == address, "changes a context that was recorded"
        self._addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        cuda = engine.cuda
        assert stream == cuda.stream
        assert self._memory[1] >= engine.memory
        assert set(self._addresses) >= {*engine.inputs, *engine.outputs}, "runs without all addresses"
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        if cuda.recording or self._captures:
            self._frozen = True

        def step() -> None:
            feeds = {
                name: cuda.at(addresses[name], _bytes(shapes[name], kind)).view(kind).reshape(shapes[name]).copy()
                for name, (_, kind) in engine.inputs.items()
            }
            cuda.at(*self._memory).fill(0xFF)  # activations of whoever ran before are gone
            for name, values in zip(engine.outputs, engine.session.run(list(engine.outputs), feeds), strict=True):
                cuda.at(addresses[name], values.nbytes)[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

        cuda.queue(step)
        return True


class FakeEngine:
    """An engine: an ONNX graph and profiles."""

    memory = 4096

    def __init__(self, cuda: FakeCuda, path: str, found: list[dict[str, Any]]) -> None:
        self.cuda = cuda
        self.profiles = [profile["shapes"] for profile in found]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(path, load_external_data=False).graph
        self.inputs = {value.name: ELEMENTS[value.type.tensor_type.elem_type] for value in graph.input}
        self.outputs = {value.name: ELEMENTS[value.type.tensor_type.elem_type] for value in graph.output}
        self._known: dict[str, dict[str, tuple[int, ...]]] = {}

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, number: int) -> str:
        return sorted([*self.inputs, *self.outputs])[number]  # in no order that anybody may rely on

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return (self.inputs | self.outputs)[name][0]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return self.memory

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig()

    def create_execution_context(self, how: FakeConfig | ExecutionContextAllocationStrategy) -> FakeContext:
        captures = isinstance(how, FakeConfig) and how.cuda_graph_strategy is not None
        assert (how.strategy if isinstance(how, FakeConfig) else how).name == "USER_MANAGED"
        return FakeContext(self, captures)

    def shapes_of(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs: found by running the graph on nothing."""
        key = repr(sorted(shapes.items()))
        if key not in self._known:
            feeds = {name: np.zeros(shapes[name], dtype=kind) for name, (_, kind) in self.inputs.items()}
            values = self.session.run(list(self.outputs), feeds)
            self._known[key] = {name: value.shape for name, value in zip(self.outputs, values, strict=True)}
        return self._known[key]


def _bytes(shape: tuple[int, ...], kind: type[np.generic]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize


class FakeTensorRT:
    """The module ``tensorrt``, or ``tensorrt_rtx``, which captures CUDA graphs itself."""

    __version__ = VERSION
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = "error", "internal", "warning"

    def __init__(self, cuda: FakeCuda, *, rtx: bool) -> None:
        self.cuda = cuda
        if rtx:
            self.CudaGraphStrategy = CudaGraphStrategy

    def Runtime(self, logger: Any) -> Any:
        cuda = self.cuda

        class Runtime:
            def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
                try:
                    return FakeEngine(cuda, **json.loads(data))
                except ValueError:
                    logger.log("error", "Serialization assertion failed:\n  magic tag")
                    return None

        return Runtime()


def nvidia(patch: pytest.MonkeyPatch, *, rtx: bool = False, cuda: FakeCuda | None = None) -> FakeCuda:
    """Put a GPU and a TensorRT into this machine."""
    found = cuda or FakeCuda()
    libraries = {"tensorrt": FakeTensorRT(found, rtx=False), "tensorrt_rtx": FakeTensorRT(found, rtx=True)}

    def put_back(self: Pool, address: int, size: int) -> None:
        self.cuda.at(address, size).fill(0xFF)  # type: ignore[attr-defined]
        put_back_unspoilt(self, address, size)

    put_back_unspoilt = Pool.put_back
    patch.setattr(Pool, "put_back", put_back)
    patch.setattr(engine_sets, "gpu_here", lambda: Gpu(found.capability, found.capacity, integrated=False))
    patch.setattr(engine_sets, "connect", lambda: found)
    patch.setattr(engine_sets, "import_tensorrt", libraries.__getitem__)
    return found


def write_engine_set(
    bundle: Path,
    limits: Limits = LIMITS,
    *,
    library: str = "tensorrt",
    target: str = "here",
    capabilities: tuple[str, ...] = ("8.6",),
    version: str = VERSION,
    precision: str | None = None,
) -> Path:
    """An engine set of a bundle, which the stand-in for TensorRT runs."""
    manifest = load_manifest(bundle)
    precision = precision or manifest.precisions[0]
    out = engines_dir(bundle, target, precision)
    out.parent.mkdir(exist_ok=True)
    work = staging_dir(out)
    work.mkdir(parents=True, exist_ok=True)
    engines = {}
    for name in manifest.engine_graphs:
        path = manifest.graph(name, precision)
        found = [asdict(profile) for profile in profiles(manifest, name, graph_inputs(path), limits)]
        (work / f"{name}.engine").write_text(json.dumps({"path": str(path), "found": found}))
        engines[name] = {"file": f"{name}.engine", "profiles": found, "memory": 0}
    fields = {
        "vtc_version": __version__,
        "bundle": manifest.digest,
        "recipe_digest": manifest.recipe_digest,
        "target": target,
        "precision": precision,
        "library": library,
        "library_version": version,
        "capabilities": list(capabilities),
        "limits": asdict(limits),
        "engines": engines,
    }
    return write_engines(work, out, fields)

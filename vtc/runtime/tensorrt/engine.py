"""One graph as a TensorRT engine: fed and read in the GPU's memory, on the one stream that all engines share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vtc.bundle.engines import Engine, Profile
from vtc.errors import BundleError, InputError, VtcError
from vtc.runtime.interface import DTYPES, Array, Tensor
from vtc.runtime.tensorrt.cuda import Cuda
from vtc.runtime.tensorrt.device import NAMES, DeviceTensor, MemoryBlock, Pool

TYPES = {
    "FLOAT": "tensor(float)",
    "HALF": "tensor(float16)",
    "BF16": "tensor(bfloat16)",
    "INT64": "tensor(int64)",
    "INT32": "tensor(int32)",
    "BOOL": "tensor(bool)",
}
"""TensorRT's names of element types, and ONNX Runtime's."""


class Lane:
    """Execution contexts for work of any shape, or for work that is the same every time.

    A CUDA graph is part of the context that it was captured from, which must then not be given other shapes; so
    work that is recorded has a lane, and contexts, of its own.

    Parameters
    ----------
    repeats : bool
        Whether the work is the same every time, addresses included.
    """

    def __init__(self, *, repeats: bool = False) -> None:
        self.repeats = repeats
        self.contexts: dict[tuple[int, int], Context] = {}


class Machine:
    """A GPU, its memory, and the TensorRT that engines were built with.

    Parameters
    ----------
    library : module
        ``tensorrt`` or ``tensorrt_rtx``, whose interfaces are the same but for CUDA graphs.
    cuda : Cuda

    Attributes
    ----------
    captures_itself : bool
        Whether execution contexts make CUDA graphs of what they run, as TensorRT for RTX advises: it alone knows when
        the kernels that it compiles for a shape at run time are there.
    """

    def __init__(self, library: Any, cuda: Cuda) -> None:
        self.library, self.cuda = library, cuda
        self.pool = Pool(cuda)
        self.captures_itself = hasattr(library, "CudaGraphStrategy")
        self.lane = Lane()
        self.scratch_bytes = 0
        self._scratch: MemoryBlock | None = None
        self._complaints: list[str] = []
        self._runtime = library.Runtime(_logger(library, self._complaints))

    def deserialise(self, path: Path) -> Any:
        """An engine from its file.

        Raises
        ------
        BundleError
            If TensorRT does not take it.
        """
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BundleError(f"{path}: TensorRT cannot load the engine ({self.complaint()}); run vtc build again")
        return engine

    def complaint(self) -> str:
        """The first thing that TensorRT said went wrong since it was last asked; what follows comes of that."""
        first = self._complaints[0] if self._complaints else "it does not say why"
        self._complaints.clear()
        return first

    def scratch(self) -> MemoryBlock:
        """Memory for activations. Engines run one after the other, so the one that wants most of it shares it."""
        if self._scratch is None or self._scratch.size < self.scratch_bytes:
            self._scratch = self.pool.reserve(self.scratch_bytes)
        return self._scratch

    @contextmanager
    def using(self, lane: Lane) -> Iterator[None]:
        """Run engines in a lane's contexts meanwhile."""
        before, self.lane = self.lane, lane
        try:
            yield
        finally:
            self.lane = before


class Context:
    """An execution context, set to one profile.

    Parameters
    ----------
    machine : Machine
    engine : tensorrt.ICudaEngine
    profile : int
    """

    def __init__(self, machine: Machine, engine: Any, profile: int) -> None:
        self._machine = machine
        self._memory = machine.scratch()
        self._bound: dict[str, tuple[tuple[int, ...], int]] = {}
        library = machine.library
        strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
        if machine.captures_itself and machine.lane.repeats:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._context = engine.create_execution_context(config)
        else:
            self._context = engine.create_execution_context(strategy)
        if self._context is None:
            raise VtcError(f"TensorRT gives no execution context ({machine.complaint()})")
        self._context.set_device_memory(self._memory.address, self._memory.size)
        self._check(self._context.set_optimization_profile_async(profile, machine.cuda.stream), "profile", profile)

    def run(self, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, str]) -> list[DeviceTensor]:
        """Queue a run.

        Parameters
        ----------
        inputs : mapping of name to DeviceTensor
        outputs : mapping of name to type

        Returns
        -------
        list of DeviceTensor
        """
        for name, tensor in inputs.items():
            bound = self._bound.get(name)
            if bound is None or bound[0] != tensor.shape():
                self._check(self._context.set_input_shape(name, tensor.shape()), name, tensor.shape())
        missing = self._context.infer_shapes()
        if missing:
            raise VtcError(f"TensorRT knows no shape of {', '.join(missing)} ({self._machine.complaint()})")
        made = []
        for name, type_name in outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            made.append(DeviceTensor(self._machine.pool, shape, type_name))
        for name, tensor in (*inputs.items(), *zip(outputs, made, strict=True)):
            # Telling TensorRT what it knows already might cost it what it has captured.
            wanted = tensor.shape(), tensor.address
            if self._bound.get(name) != wanted:
                self._check(self._context.set_tensor_address(name, tensor.address), name, tensor.address)
                self._bound[name] = wanted
        self._check(self._context.execute_async_v3(self._machine.cuda.stream), "run", "")
        return made

    def _check(self, worked: bool, what: str, value: object) -> None:
        if not worked:
            raise VtcError(f"TensorRT refuses {what} {value} ({self._machine.complaint()})")


class EngineGraph:
    """A graph's engine, loaded.

    Parameters
    ----------
    machine : Machine
    path : Path
    facts : Engine
        What its set says of it.

    Attributes
    ----------
    inputs : dict of name to dtype
    outputs : list of str
    most_past : int or None
        Cached tokens that it takes at most, where it takes any.

    Raises
    ------
    BundleError
        If TensorRT cannot load it, or it is not what its set says.
    """

    def __init__(self, machine: Machine, path: Path, facts: Engine) -> None:
        self._machine, self._facts, self._path = machine, facts, path
        self._engine = machine.deserialise(path)
        modes = {name: self._engine.get_tensor_mode(name) for name in _names(self._engine)}
        types = {name: self._type(name) for name in modes}
        mode = machine.library.TensorIOMode
        if {name for name in modes if modes[name] == mode.INPUT} != set(facts.profiles[0].shapes):
            raise BundleError(f"{path}: has other inputs than its set says; run vtc build again")
        # In the order of the graph, which its set keeps and an engine need not.
        self.inputs = {name: DTYPES[types[name]] for name in facts.profiles[0].shapes}
        self._outputs = {name: types[name] for name in modes if modes[name] == mode.OUTPUT}
        self.outputs = list(self._outputs)
        self.most_past = _most_past(facts.profiles)
        for number in range(len(facts.profiles)):
            wanted = self._engine.get_device_memory_size_for_profile_v2(number)
            machine.scratch_bytes = max(machine.scratch_bytes, wanted)
        self._marks: tuple[Any, Any] | None = None

    def _type(self, name: str) -> str:
        found = self._engine.get_tensor_dtype(name).name
        if found not in TYPES:
            raise BundleError(
                f"{self._path}: {name} is of type {found}, which vtc does not hand on; run vtc build again"
            )
        return TYPES[found]

    @property
    def run_ms(self) -> float:
        """What the last run took on the GPU, copies of its inputs included; 0 before the first."""
        return 0.0 if self._marks is None else self._machine.cuda.elapsed(*self._marks)

    def run(self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()) -> list[Tensor]:
        """Queue a run; see :class:`~vtc.runtime.interface.LoadedGraph`. Outputs come to the host when they are read.

        Raises
        ------
        InputError
            If an input's shape is in none of the profiles.
        """
        cuda, lane = self._machine.cuda, self._machine.lane
        if not lane.repeats:
            self._marks = self._marks or (cuda.event(), cuda.event())
            cuda.mark(self._marks[0])
        inputs = {name: self._here(name, feeds[name]) for name in self.inputs}
        profile = self._profile({name: tensor.shape() for name, tensor in inputs.items()})
        key = id(self), profile
        if key not in lane.contexts:
            lane.contexts[key] = Context(self._machine, self._engine, profile)
        outputs: list[Tensor] = list(lane.contexts[key].run(inputs, self._outputs))
        if not lane.repeats and self._marks is not None:
            cuda.mark(self._marks[1])
        return outputs

    def empty(self, *shape: int, dtype: type[np.generic]) -> Tensor:
        return DeviceTensor(self._machine.pool, shape, NAMES[dtype])

    def _here(self, name: str, value: Array | Tensor) -> DeviceTensor:
        if not isinstance(value, DeviceTensor):
            values = value if isinstance(value, np.ndarray) else value.numpy()
            return DeviceTensor.of(self._machine.pool, values, self.inputs[name])
        if DTYPES[value.data_type()] is not self.inputs[name]:
            raise BundleError(
                f"{self._path}: takes {name} as {self.inputs[name].__name__} and is given {value.data_type()}; "
                "its set is of more than one export: run vtc build again"
            )
        return value

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The first profile that all shapes are in."""
        for number, profile in enumerate(self._facts.profiles):
            if all(_within(shape, profile, name) for name, shape in shapes.items()):
                return number
        # Each profile is left by other inputs; that of the fewest is what was meant.
        left = [
            [(name, shape, profile) for name, shape in shapes.items() if not _within(shape, profile, name)]
            for profile in self._facts.profiles
        ]
        name, shape, profile = min(left, key=len)[0]
        least, _, most = profile.shapes[name]
        raise InputError(
            f"{self._path.name} was built for {name} from {list(least)} to {list(most)} ({profile.name}), not for "
            f"{list(shape)}; run vtc build with larger limits (--max-text, --max-images, --max-batch, --max-new-tokens)"
        )


def _names(engine: Any) -> list[str]:
    return [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]


def _within(shape: Sequence[int], profile: Profile, name: str) -> bool:
    least, _, most = profile.shapes[name]
    return len(shape) == len(least) and all(
        low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
    )


def _most_past(profiles: Sequence[Profile]) -> int | None:
    return max(
        (
            shapes[2][2]
            for profile in profiles
            for name, shapes in profile.shapes.items()
            if name.startswith("past_key_values.")
        ),
        default=None,
    )


def _logger(library: Any, complaints: list[str]) -> Any:
    """A logger that keeps errors for the one line that tells of them, and drops the rest."""

    class Complaints(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                complaints.append(" ".join(message.split()))

    return Complaints()

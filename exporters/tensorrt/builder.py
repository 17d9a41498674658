"""One ONNX graph as one engine, by TensorRT or TensorRT for RTX, whose Python interfaces are the same.

They differ in where an engine may run: RTX is told GPU generations and needs no GPU; TensorRT builds for the GPU that
it tries kernels on, and remembers their times in a timing cache.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporters.target import PRODUCTS, Target
from vtc.bundle.engines import Profile
from vtc.errors import BundleError, InputError, MissingDependency, VtcError
from vtc.machine import machine_fault
from vtc.progress import Report, silent
from vtc.runtime.nvidia import import_tensorrt

_NOISE = ("catchCudaError", "While parsing node", "--- Begin node", "--- End node", "In function ")
"""In lines that TensorRT logs as errors: that there is no GPU, which RTX asks for in vain, and frames round a cause."""


@dataclass
class Builder:
    """A TensorRT that builds engines.

    Attributes
    ----------
    module : module
        ``tensorrt`` or ``tensorrt_rtx``.
    target : Target
    capabilities : tuple of str
        GPU generations that engines are built for.
    workspace : int
        Bytes of GPU memory that a layer may use for intermediate values; 0: all there is.
    cache : Path or None
        File of the timing cache.
    own_cache : bool
        Whether the user named it, so that one that does not fit is an error and not replaced.
    debug : bool
        Whether TensorRT's own log goes to stderr.
    """

    module: Any
    target: Target
    capabilities: tuple[str, ...]
    workspace: int = 0
    cache: Path | None = None
    own_cache: bool = False
    debug: bool = False
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.logger = _logger(self.module, self.errors, self.debug)

    @property
    def product(self) -> str:
        """Name and version, for people."""
        return f"{PRODUCTS[self.target.library]} {self.module.__version__}"

    def build(
        self,
        graph: Path,
        out: Path,
        profiles: Callable[[dict[str, list[int | str]]], Sequence[Profile]],
        check: Callable[[int], None],
        report: Report = silent,
    ) -> tuple[Profile, ...]:
        """Build one engine.

        Parameters
        ----------
        graph : Path
            ONNX file, with its weights inside or beside it.
        out : Path
            Engine file to write.
        profiles : callable
            Given names and shapes of the graph's inputs, dynamic dimensions by name, says what to build for.
        check : callable
            Given the bytes of the largest inputs of all profiles, raises if there is no memory for them.
        report : callable
            Told how many hundredths are done.

        Returns
        -------
        tuple of Profile
            What it was built for.

        Raises
        ------
        VtcError
            If TensorRT refuses the graph, or the file cannot be written.
        KeyboardInterrupt
            If the user interrupted the build; it stops after the step that it was at.
        """
        self.errors.clear()
        trt = self.module
        builder = trt.Builder(self.logger)
        # Types come from the graph alone; TensorRT 11 knows nothing else, and takes the flag without effect.
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(graph)):
            raise VtcError(self._refusal(graph, parser))
        inputs = [network.get_input(number) for number in range(network.num_inputs)]
        built = tuple(profiles({tensor.name: _named(tensor, graph) for tensor in inputs}))
        check(sum(_bytes(tensor, profile) for tensor in inputs for profile in built))
        config = self._config(builder, built, graph)
        cache = self._open_cache(config)
        with _interruptible() as interrupted:
            monitor = _monitor(trt, f"building {graph.stem}", report, interrupted)
            config.progress_monitor = monitor
            engine = builder.build_serialized_network(network, config)
        if interrupted.is_set():
            raise KeyboardInterrupt
        if monitor.failure is not None:
            raise monitor.failure
        if engine is None:
            why = self.errors[0] if self.errors else "it does not say why; vtc --debug shows its log"
            raise VtcError(f"{graph.name}: {self.product} cannot build an engine of it: {why}")
        _write(out, engine)
        if cache is not None and self.cache is not None:
            _write(self.cache, cache.serialize())
        return built

    def memory_of(self, engine: Path) -> int:
        """Bytes of activations that an engine wants, which only a GPU that it was built for can tell.

        Raises
        ------
        VtcError
            If the engine does not load here.
        """
        self.errors.clear()
        loaded = self.module.Runtime(self.logger).deserialize_cuda_engine(engine.read_bytes())
        if loaded is None:
            why = self.errors[0] if self.errors else "it does not say why; vtc --debug shows its log"
            raise VtcError(f"{engine.name}: {self.product} does not load the engine that it has built: {why}")
        return int(loaded.device_memory_size_v2)

    def _config(self, builder: Any, profiles: Sequence[Profile], graph: Path) -> Any:
        trt = self.module
        config = builder.create_builder_config()
        if self.target.library == "tensorrt_rtx":
            config.num_compute_capabilities = len(self.capabilities)
            for number, capability in enumerate(self.capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, _member(capability)), number)
        if self.workspace:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.workspace)
        for number, profile in enumerate(profiles):
            shapes = builder.create_optimization_profile()
            for name, (least, usual, most) in profile.shapes.items():
                shapes.set_shape(name, least, usual, most)
            if number:
                shapes.extra_memory_target = 0.0  # a hint: weights are to be those of the first profile
            if config.add_optimization_profile(shapes) != number:
                raise VtcError(
                    f"{graph.name}: {self.product} does not take profile '{profile.name}' "
                    f"({self.errors[0] if self.errors else 'it does not say why'}); please report this"
                )
        return config

    def _open_cache(self, config: Any) -> Any:
        """Attach the timing cache, and return it; None where there is none."""
        if self.cache is None:
            return None
        content = self.cache.read_bytes() if self.cache.is_file() else b""
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            if self.own_cache:
                raise InputError(f"{self.cache}: is no timing cache of {self.product} and this GPU; give another file")
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        return cache

    def _refusal(self, graph: Path, parser: Any) -> str:
        """What the parser says, in one line: graph, operator, node, and what to do."""
        if not parser.num_errors:
            return f"{graph.name}: {self.product} cannot read it; export the bundle again"
        first = parser.get_error(0)
        said = [line for line in first.desc().splitlines() if not any(noise in line for noise in _NOISE)]
        where = f"{first.node_operator()} {first.node_name()}".strip()
        more = f" ({parser.num_errors} errors in all)" if parser.num_errors > 1 else ""
        return (
            f"{graph.name}: {where or 'graph'}: {self.product} does not take it: {' '.join(said) or first.desc()}"
            f"{more}; export the bundle again with --target {self.target.name}, which says what to do about it"
        )


def import_library(target: Target) -> Any:
    """The TensorRT of a target.

    Raises
    ------
    MissingDependency
        If it is not installed or does not load.
    InputError
        If the installed release is older than the target's, or of another major version.
    """
    product = PRODUCTS[target.library]
    try:
        module = import_tensorrt(target.library)
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependency(
            f"target '{target.name}' needs {product}, which cannot be imported ({error}): {target.install}"
        ) from error
    if not target.includes([int(part) for part in module.__version__.split(".")[:2]]):
        raise InputError(
            f"target '{target.name}' is {product} {target.oldest} or a later {target.release[0]}.x, "
            f"and {module.__version__} is installed: {target.install}, or give another --target"
        )
    return module


def buildable(module: Any) -> list[str]:
    """GPU generations that TensorRT for RTX builds for ahead of time."""
    names = [name.removeprefix("SM") for name in module.ComputeCapability.__members__ if name.startswith("SM")]
    return sorted((f"{name[:-1]}.{name[-1]}" for name in names), key=lambda name: [*map(int, name.split("."))])


def _member(capability: str) -> str:
    return f"SM{capability.replace('.', '')}"


def _named(tensor: Any, graph: Path) -> list[int | str]:
    shape: list[int | str] = []
    for axis, size in enumerate(tensor.shape):
        name = tensor.get_dimension_name(axis) if size == -1 else size
        if not name and size == -1:
            raise BundleError(f"{graph.name}: axis {axis} of input {tensor.name} has no name; export the bundle again")
        shape.append(name)
    return shape


def _bytes(tensor: Any, profile: Profile) -> int:
    return int(math.prod(profile.shapes[tensor.name][2]) * tensor.dtype.itemsize)


def _write(path: Path, content: Any) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            stream.write(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise machine_fault(error, path) or InputError(
            f"{path}: cannot be written ({error.strerror or error}); give another path"
        ) from error


def _logger(trt: Any, errors: list[str], debug: bool) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # TensorRT is imported when it is needed
        """Keeps errors, and passes everything on where the user wants to see it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR and not any(noise in message for noise in _NOISE):
                errors.append(" ".join(message.split()))
            if debug:
                with suppress(OSError):  # nothing may leave a callback of C++
                    print(f"[{severity.name}] {message}", file=sys.stderr)

    return Logger()


def _monitor(trt: Any, label: str, report: Report, interrupted: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Makes one number of nested phases, and stops the build when it is asked to.

        No exception may leave its methods: TensorRT calls them from C++.
        """

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: Exception | None = None
            self._lock = threading.Lock()  # TensorRT calls from several threads
            self._phases: dict[str, list[int]] = {}
            self._shown = -1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = [0, num_steps]
                self._show()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._phases:
                    self._phases[phase_name][0] = step + 1
                    self._show()
            return self.failure is None and not interrupted.is_set()

        def _show(self) -> None:
            done, share = 0.0, 1.0
            for finished, steps in self._phases.values():
                share /= max(steps, 1)
                done += finished * share
            hundredths = min(int(100 * done), 99)
            if hundredths <= self._shown or self.failure is not None:
                return
            self._shown = hundredths
            try:
                report(label, hundredths, 100)
            except Exception as error:
                self.failure = error

    return Monitor()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Note Ctrl-C in an event while the body runs: raised inside of TensorRT's callbacks it would end the process."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)

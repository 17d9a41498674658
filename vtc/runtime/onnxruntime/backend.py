"""ONNX Runtime as a backend: graphs in sessions, fed and read through IO binding.

Tensors stay where the provider computes: an output is handed to the next graph, or to the next step of the
same one, as it is, and only what is asked for comes to the host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtc.bundle.engines import Limits
from vtc.bundle.interface import Shapes, check_interface
from vtc.bundle.manifest import Manifest
from vtc.bundle.weights import check_weights
from vtc.errors import BundleError, one_line
from vtc.machine import machine_fault
from vtc.runtime.interface import DTYPES, Array, LoadedGraph, Past, Result, Tensor
from vtc.runtime.onnxruntime.providers import (
    ON_GPU,
    Provider,
    choose_provider,
    import_onnxruntime,
    preload_cuda,
)
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.past import GrowingPast
from vtc.runtime.quiet import quiet_stderr


class Graph:
    """A graph in a session: a :class:`~vtc.runtime.interface.LoadedGraph`, which says what its methods do.

    Several threads may run it at once: a session may be run so, and each run has a binding to itself.

    Parameters
    ----------
    path : Path
    provider : Provider
    threads : int or None
        Threads of one operator; None leaves it to ONNX Runtime.
    sparing : bool
        Take less memory and more time: weights are neither laid out anew nor converted before they are needed, which
        takes a second copy of them.

    Attributes
    ----------
    most_past : None
        Caches may be of any length.

    Raises
    ------
    BundleError
        If ONNX Runtime cannot load the graph.
    """

    def __init__(self, path: Path, provider: Provider, threads: int | None = None, sparing: bool = False) -> None:
        self.provider = provider
        self._path = path
        self._runtime = import_onnxruntime()
        self._session = self._open(path, provider, threads, sparing)
        self._device = "cuda" if self._session.get_providers()[0] in ON_GPU else "cpu"
        self.inputs = {value.name: DTYPES.get(value.type, np.float32) for value in self._session.get_inputs()}
        self.outputs: list[str] = [value.name for value in self._session.get_outputs()]
        self.most_past: int | None = None
        self._bindings: list[Any] = []  # that no run uses; a new one costs as much as a small graph's operator
        self._last = threading.local()

    def _open(self, path: Path, provider: Provider, threads: int | None, sparing: bool) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised as well, and told in one line
        # A bundle is several sessions that run in turn. Threads that spin between runs take the cores away
        # from the session that runs, and on a busy machine cost a factor of two.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Left alone, it rounds what meets weights of few bits to 8 bits too, which a bundle does not ask for.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.add_session_config_entry("session.disable_prepacking", str(int(sparing)))
        options.enable_cpu_mem_arena = not sparing  # which grows by powers of two, and never shrinks
        if threads is not None:
            options.intra_op_num_threads = threads
        names = list(dict.fromkeys([provider.name, "CPUExecutionProvider"]))
        if provider.name in ON_GPU:
            preload_cuda()
            if provider.name == "TensorrtExecutionProvider":
                names.insert(1, "CUDAExecutionProvider")
        try:
            session = self._start(path, options, names, ["ConstantFolding"] if sparing else [])
        except Exception as error:  # ONNX Runtime raises a kind of its own for each status code
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise machine_fault(error, path) or BundleError(
                f"{path}: ONNX Runtime cannot load the graph ({reason})"
            ) from error
        return session

    def _start(self, path: Path, options: Any, names: list[str], without: list[str]) -> Any:
        def start() -> Any:
            with quiet_stderr():
                return self._runtime.InferenceSession(str(path), options, names, disabled_optimizers=without)

        try:
            return start()
        except Exception as error:
            if "float8" not in str(error):
                raise
            # Its optimizer moves float8 to operators that do not take it; the graph as it is runs.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            return start()

    @property
    def run_ms(self) -> float:
        return float(getattr(self._last, "run_ms", 0.0))

    def run(self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()) -> list[Tensor]:
        try:
            binding = self._bindings.pop()
        except IndexError:
            binding = self._session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value, dtype=self.inputs[name]))
            else:
                binding.bind_ortvalue_input(name, value)
        # Outputs grow from step to step, so they are allocated by ONNX Runtime.
        for name in self.outputs:
            binding.bind_output(name, "cpu" if name in host else self._device)
        begin = time.perf_counter()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise machine_fault(error, self._path) or BundleError(
                f"{self._path}: ONNX Runtime cannot run the graph ({one_line(error)})"
            ) from error
        self._last.run_ms = (time.perf_counter() - begin) * 1000
        outputs: list[Tensor] = binding.get_outputs()
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        self._bindings.append(binding)
        return outputs

    def shapes(self) -> tuple[Shapes, Shapes]:
        """Names and sizes of inputs and of outputs."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        return {value.name: value.shape for value in inputs}, {value.name: value.shape for value in outputs}

    def empty(self, *shape: int, dtype: type[np.generic]) -> Tensor:
        value: Tensor = self._runtime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=dtype), self._device)
        return value


class OnnxRuntime:
    """A bundle's graphs in ONNX Runtime: a :class:`~vtc.runtime.interface.Backend`, which says what its methods do.

    Parameters
    ----------
    manifest : Manifest
    options : RuntimeOptions
    sparing : bool
        As for :class:`Graph`.

    Raises
    ------
    InputError
        If the provider or precision is not to be had.
    """

    def __init__(
        self, manifest: Manifest, options: RuntimeOptions = RuntimeOptions(), *, sparing: bool = False
    ) -> None:
        self._manifest, self._threads, self._sparing = manifest, options.threads, sparing
        self._verify = options.verify
        self.lock = nullcontext()
        self._provider = choose_provider(options.provider)
        self.provider = self._provider.short_name
        self.precision = options.precision or _default_precision(manifest, self._provider)
        manifest.check_precision(self.precision)

    def open(self, graph: str) -> Graph:
        path = self._manifest.graph(graph, self.precision)
        if self._verify:
            check_weights(path)
        opened = Graph(path, self._provider, self._threads, self._sparing)
        check_interface(self._manifest, graph, *opened.shapes())
        return opened

    def admit(self, needed: Limits) -> None:
        """ONNX graphs take any number of prompts, images and tokens."""

    def place(self, embeds: Tensor, features: Tensor, where: NDArray[np.bool_]) -> Array:
        """On the host."""
        values, visual = embeds.numpy(), features.numpy()
        values[where] = visual.reshape(-1, visual.shape[-1])
        return values

    def past(self, graph: LoadedGraph, shape: tuple[int, int, int], most: int) -> Past:
        """A cache that grows: ONNX Runtime allocates outputs of any length."""
        return GrowingPast(graph, shape)

    def repeat(
        self,
        fixed: Sequence[Tensor],
        arrays: Mapping[str, Array],
        program: Callable[[Mapping[str, Array | Tensor]], Result],
    ) -> Result:
        return program(arrays)


def _default_precision(manifest: Manifest, provider: Provider) -> str:
    wish = "fp16" if provider.device == "cuda" else "fp32"
    return wish if wish in manifest.precisions else manifest.precisions[0]

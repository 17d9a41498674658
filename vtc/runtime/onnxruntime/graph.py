"""A graph in a session of ONNX Runtime, fed and read without copies.

Tensors stay where the provider computes: an output is handed to the next graph, or to the next step of the
same one, as it is, and only what is asked for comes to the host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from vtc.bundle.interface import Shapes
from vtc.errors import BundleError, one_line
from vtc.machine import machine_fault
from vtc.runtime.interface import DTYPES, Array, Tensor
from vtc.runtime.onnxruntime.processor import has_vnni
from vtc.runtime.onnxruntime.providers import ON_GPU, Provider, import_onnxruntime, preload_cuda
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
    spin : bool
        Whether threads wait busily for the next operator, and between runs. That takes cores from whatever else
        computes: on a busy machine it costs a factor of two, on an idle one it gains a tenth.
    session : mapping of str to str
        Further entries of the session's configuration.
    in_place : bool
        Whether it writes its cache where it reads it.
    lay_out : bool
        Whether weights are laid out anew for faster products of many tokens, in a copy. A second graph of the same
        weights leaves them as they lie in their file, which both map into memory.
    keep_freed : bool
        Whether memory that a run has freed is kept for the next one, a few times as much as a run takes.

    Attributes
    ----------
    most_past : None
        Caches may be of any length.
    device : str
        Where tensors live: ``cpu`` or ``cuda``.

    Raises
    ------
    BundleError
        If ONNX Runtime cannot load the graph.
    """

    def __init__(
        self,
        path: Path,
        provider: Provider,
        threads: int | None = None,
        sparing: bool = False,
        *,
        spin: bool = False,
        session: Mapping[str, str] = MappingProxyType({}),
        in_place: bool = False,
        lay_out: bool = True,
        keep_freed: bool = True,
    ) -> None:
        self.provider, self.in_place = provider, in_place
        self._path = path
        self._runtime = import_onnxruntime()
        entries = {
            "session.intra_op.allow_spinning": str(int(spin)),
            # Left alone, it rounds what meets weights of few bits to 8 bits too, which a bundle has to ask for.
            "session.qdq_matmulnbits_accuracy_level": "1",
            "session.x64quantprecision": str(int(not has_vnni())),
            "session.disable_prepacking": str(int(sparing or not lay_out)),
            **session,
        }
        self._session = self._open(path, provider, threads, entries, sparing=sparing, arena=keep_freed and not sparing)
        self.device = "cuda" if self._session.get_providers()[0] in ON_GPU else "cpu"
        self.inputs = {value.name: DTYPES.get(value.type, np.float32) for value in self._session.get_inputs()}
        self.outputs: list[str] = [value.name for value in self._session.get_outputs()]
        self.most_past: int | None = None
        self._bindings: list[Any] = []  # that no run uses; a new one costs as much as a small graph's operator
        self._last = threading.local()

    def _open(
        self,
        path: Path,
        provider: Provider,
        threads: int | None,
        entries: Mapping[str, str],
        *,
        sparing: bool,
        arena: bool,
    ) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised as well, and told in one line
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        options.enable_cpu_mem_arena = arena  # which grows by powers of two, and never shrinks
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
        if self.device == "cpu":
            # One call: binding some fifty tensors of a cache takes as long as several of the graph's products.
            values = {name: self._tensor(name, value) for name, value in feeds.items()}
            found: list[Tensor] = self._timed(lambda: self._session.run_with_ort_values(self.outputs, values))
            return found
        try:
            binding = self._bindings.pop()
        except IndexError:
            binding = self.binding()
        self.bind_inputs(binding, feeds)
        # Outputs grow from step to step, so they are allocated by ONNX Runtime.
        for name in self.outputs:
            binding.bind_output(name, "cpu" if name in host else self.device)
        self.execute(binding)
        outputs: list[Tensor] = binding.get_outputs()
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        self._bindings.append(binding)
        return outputs

    def binding(self) -> Any:
        """An IO binding that nothing is bound to."""
        return self._session.io_binding()

    def bind_inputs(self, binding: Any, feeds: Mapping[str, Array | Tensor]) -> None:
        """Bind inputs by name."""
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value, dtype=self.inputs[name]))
            else:
                binding.bind_ortvalue_input(name, value)

    def execute(self, binding: Any) -> None:
        """Run what is bound.

        Raises
        ------
        BundleError
            If ONNX Runtime cannot run the graph.
        """
        self._timed(lambda: self._session.run_with_iobinding(binding))

    def _tensor(self, name: str, value: Array | Tensor) -> Tensor:
        """An input as a tensor of the processor's memory, which an array's is already."""
        if not isinstance(value, np.ndarray):
            return value
        array = np.ascontiguousarray(value, dtype=self.inputs[name])
        tensor: Tensor = self._runtime.OrtValue.ortvalue_from_numpy(array)
        return tensor

    def _timed(self, run: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        try:
            found = run()
        except Exception as error:  # a kind for each status code
            raise machine_fault(error, self._path) or BundleError(
                f"{self._path}: ONNX Runtime cannot run the graph ({one_line(error)})"
            ) from error
        self._last.run_ms = (time.perf_counter() - begin) * 1000
        return found

    def shapes(self) -> tuple[Shapes, Shapes]:
        """Names and sizes of inputs and of outputs."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        return {value.name: value.shape for value in inputs}, {value.name: value.shape for value in outputs}

    def empty(self, *shape: int, dtype: type[np.generic]) -> Tensor:
        value: Tensor = self._runtime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=dtype), self.device)
        return value

    def allocate(self, *shape: int, dtype: type[np.generic], device: str = "") -> Tensor:
        """A tensor whose values are whatever its memory holds, where the graph computes unless told otherwise."""
        value: Tensor = self._runtime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device or self.device)
        return value

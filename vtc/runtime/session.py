"""One ONNX graph in an ONNX Runtime session, fed and read through IO binding.

Tensors stay where the provider computes: an output is handed to the next graph, or to the next step of the
same one, as it is, and only what is asked for comes to the host.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtc.errors import BundleError
from vtc.runtime.providers import ON_GPU, Provider, import_onnxruntime, preload_cuda, quiet_stderr

Array = NDArray[Any]
Tensor = Any
"""An `onnxruntime.OrtValue`: a tensor on the provider's device."""

DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class Graph:
    """A graph, loaded.

    Parameters
    ----------
    path : Path
    provider : Provider
    threads : int or None
        Threads of one operator; None leaves it to ONNX Runtime.
    prepack : bool
        Whether weights may be laid out anew for speed; while the graph is loaded, the largest is then there twice.

    Attributes
    ----------
    inputs : dict of name to dtype
    outputs : list of str
    run_ms : float
        What the last run took; 0 before the first.

    Raises
    ------
    BundleError
        If ONNX Runtime cannot load the graph.
    """

    def __init__(self, path: Path, provider: Provider, threads: int | None = None, prepack: bool = True) -> None:
        self.provider = provider
        self._runtime = import_onnxruntime()
        self._session = self._open(path, provider, threads, prepack)
        self._binding = self._session.io_binding()
        self._device = "cuda" if self._session.get_providers()[0] in ON_GPU else "cpu"
        self.inputs = {value.name: DTYPES.get(value.type, np.float32) for value in self._session.get_inputs()}
        self.outputs: list[str] = [value.name for value in self._session.get_outputs()]
        self.run_ms = 0.0

    def _open(self, path: Path, provider: Provider, threads: int | None, prepack: bool) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        # A bundle is several sessions that run in turn. Threads that spin between runs take the cores away
        # from the session that runs, and on a busy machine cost a factor of two.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_prepacking", str(int(not prepack)))
        if threads is not None:
            options.intra_op_num_threads = threads
        names = list(dict.fromkeys([provider.name, "CPUExecutionProvider"]))
        if provider.name in ON_GPU:
            preload_cuda()
            if provider.name == "TensorrtExecutionProvider":
                names.insert(1, "CUDAExecutionProvider")
        try:
            with quiet_stderr():
                session = self._runtime.InferenceSession(str(path), options, providers=names)
        except Exception as error:  # ONNX Runtime raises a kind of its own for each status code
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BundleError(f"{path}: ONNX Runtime cannot load the graph ({reason})") from error
        return session

    @property
    def providers(self) -> list[str]:
        """Execution providers that the session really has, in order."""
        return list(self._session.get_providers())

    def run(self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()) -> list[Tensor]:
        """Run the graph.

        Parameters
        ----------
        feeds : mapping of input name to array or tensor
        host : collection of str
            Outputs wanted on the host; the others stay on the device.

        Returns
        -------
        list of Tensor
            In the order of `outputs`; ``.numpy()`` gives those on the host.
        """
        binding = self._binding
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value, dtype=self.inputs[name]))
            else:
                binding.bind_ortvalue_input(name, value)
        # Outputs grow from step to step, so they are bound anew and allocated by ONNX Runtime.
        binding.clear_binding_outputs()
        for name in self.outputs:
            binding.bind_output(name, "cpu" if name in host else self._device)
        begin = time.perf_counter()
        self._session.run_with_iobinding(binding)
        self.run_ms = (time.perf_counter() - begin) * 1000
        outputs: list[Tensor] = binding.get_outputs()
        return outputs

    def release(self) -> None:
        """Let go of the last run's tensors."""
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()

    def empty(self, *shape: int, dtype: type[np.generic]) -> Tensor:
        """A tensor without elements, which is how a cache begins."""
        return self._runtime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=dtype), self._device)

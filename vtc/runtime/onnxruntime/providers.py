"""Which ONNX Runtime execution provider to use: the fastest that really works here, found out without noise.

`onnxruntime-gpu` offers its CUDA provider on every machine and complains on stderr where it cannot load it.
So the driver is asked first, and then a one-node graph is tried.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import dataclass
from functools import cache
from typing import Any

from vtc.errors import InputError, MissingDependency
from vtc.runtime.nvidia import cuda_devices
from vtc.runtime.quiet import quiet_stderr

SHORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dml": "DmlExecutionProvider",
}
"""What `--provider` takes beside ONNX Runtime's own names."""

ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
"""Providers whose tensors live in CUDA memory."""

# y = Identity(x), opset 13, float32, as ONNX writes it.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808"
    "0112040a02080142040a00100d"
)


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes
    ----------
    name : str
        ONNX Runtime's name.
    """

    name: str

    @property
    def device(self) -> str:
        """Where its tensors live, in ONNX Runtime's words."""
        return "cuda" if self.name in ON_GPU else "cpu"

    @property
    def short_name(self) -> str:
        """The name for people."""
        return next((short for short, name in SHORT_NAMES.items() if name == self.name), self.name)


def import_onnxruntime() -> Any:
    """The onnxruntime module.

    Raises
    ------
    MissingDependency
        If it is not installed or cannot be loaded.
    """
    try:
        with quiet_stderr():
            onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingDependency(
            f"onnxruntime cannot be imported ({error}): pip install onnxruntime, "
            "or onnxruntime-gpu on an NVIDIA machine"
        ) from error
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def choose_provider(wanted: str | None = None) -> Provider:
    """The execution provider to run on.

    Parameters
    ----------
    wanted : str or None
        A short name (:data:`SHORT_NAMES`) or ONNX Runtime's; None chooses CUDA where it works, else the CPU.

    Raises
    ------
    InputError
        If `wanted` is not part of the installed ONNX Runtime, or needs a GPU that is not there.
    """
    available = import_onnxruntime().get_available_providers()
    if wanted is None:
        cuda = "CUDAExecutionProvider"
        return Provider(cuda if cuda in available and cuda_devices() and starts(cuda) else "CPUExecutionProvider")
    name = SHORT_NAMES.get(wanted.lower(), wanted)
    if name not in available:
        names = ", ".join(short for short, full in SHORT_NAMES.items() if full in available)
        raise InputError(f"provider '{wanted}' is not in the installed onnxruntime; available: {names}")
    if name in ON_GPU and not cuda_devices():
        raise InputError(f"provider '{wanted}' needs an NVIDIA GPU and its driver, and finds none; try --provider cpu")
    if not starts(name):
        raise InputError(
            f"provider '{wanted}' does not start here: its libraries are missing, "
            "or of another version than this onnxruntime needs"
        )
    return Provider(name)


@cache
def starts(name: str) -> bool:
    """Whether a session with this provider can be had."""
    onnxruntime = import_onnxruntime()
    if name in ON_GPU:
        preload_cuda()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        with quiet_stderr():
            # ONNX Runtime falls back to the CPU without an error, so ask what the session got.
            session = onnxruntime.InferenceSession(_IDENTITY, options, providers=[name])
    except Exception:  # one kind for each status code; any of them means no
        return False
    return bool(session.get_providers()[0] == name)


@cache
def preload_cuda() -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages where those are installed; say nothing if not."""
    onnxruntime = import_onnxruntime()
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()), quiet_stderr():
            onnxruntime.preload_dlls(directory="")

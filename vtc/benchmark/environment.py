"""The machine and the libraries that something was timed with."""

from __future__ import annotations

import os
import platform
from typing import Any

from vtc.errors import MissingDependency
from vtc.runtime.onnxruntime.providers import import_onnxruntime
from vtc.runtime.versions import package_version


def environment(provider: str, threads: int | None) -> dict[str, Any]:
    """Describe the machine, as JSON data.

    Parameters
    ----------
    provider : str
        What computed: an execution provider of ONNX Runtime, or a TensorRT, whose version is then told.
    threads : int or None
    """
    found = {
        "onnxruntime": _onnxruntime(),
        "provider": provider,
        "threads": threads,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    if provider in ("tensorrt", "tensorrt_rtx"):
        found[provider] = package_version(provider)
    return found


def _onnxruntime() -> str | None:
    """Its version; PyTorch is timed without it."""
    try:
        return str(import_onnxruntime().__version__)
    except MissingDependency:
        return None

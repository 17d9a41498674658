"""Which backend runs a bundle."""

from __future__ import annotations

from pathlib import Path

from vtc.bundle.manifest import Manifest
from vtc.errors import InputError
from vtc.runtime import BACKENDS
from vtc.runtime.interface import Backend
from vtc.runtime.onnxruntime.backend import OnnxRuntime


def open_backend(
    manifest: Manifest,
    backend: str = BACKENDS[0],
    *,
    provider: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    engines: str | Path | None = None,
    verify: bool = True,
) -> Backend:
    """What is to run a bundle's graphs.

    Parameters
    ----------
    manifest : Manifest
    backend : str
        One of :data:`vtc.runtime.BACKENDS`.
    provider, threads
        As for :class:`~vtc.runtime.onnxruntime.backend.OnnxRuntime`; for ``onnxruntime`` alone.
    precision : str or None
    engines : path or None
        As for :func:`~vtc.runtime.tensorrt.engine_sets.choose_engines`; for ``tensorrt`` alone.
    verify : bool
        Compare the engines' hashes with their manifest; False compares sizes.

    Raises
    ------
    InputError
        If options do not go together, or what they ask for is not to be had here.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend '{backend}' is not known; backends: {', '.join(BACKENDS)}")
    if backend == "onnxruntime":
        if engines is not None:
            raise InputError("--engines goes with --backend tensorrt")
        return OnnxRuntime(manifest, provider, precision, threads)
    for option, value in (("--provider", provider), ("--threads", threads)):
        if value is not None:
            raise InputError(f"{option} goes with --backend onnxruntime; engines run on the GPU they were built for")
    from vtc.runtime.tensorrt.backend import TensorRT

    return TensorRT.load(manifest, engines, precision, verify=verify)

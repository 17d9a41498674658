"""Which backend runs a bundle."""

from __future__ import annotations

from vtc.bundle.manifest import Manifest
from vtc.errors import InputError
from vtc.runtime.interface import Backend
from vtc.runtime.onnxruntime.backend import OnnxRuntime
from vtc.runtime.options import BACKENDS, RuntimeOptions


def open_backend(manifest: Manifest, options: RuntimeOptions = RuntimeOptions()) -> Backend:
    """Open what is to run a bundle's graphs.

    Parameters
    ----------
    manifest : Manifest
    options : RuntimeOptions

    Returns
    -------
    Backend

    Raises
    ------
    InputError
        If options do not go together, or what they ask for is not to be had here.
    """
    if options.backend not in BACKENDS:
        raise InputError(f"backend '{options.backend}' is not known; backends: {', '.join(BACKENDS)}")
    if options.backend != "tensorrt" and options.engines is not None:
        raise InputError("--engines goes with --backend tensorrt")
    if options.backend == "onnxruntime":
        return OnnxRuntime(manifest, options)
    if options.backend == "openvino":
        if options.spin:
            raise InputError("--spin goes with --backend onnxruntime")
        from vtc.runtime.openvino.backend import OpenVINO

        return OpenVINO(manifest, options)
    alone = {"--provider": options.provider, "--threads": options.threads, "--spin": options.spin or None}
    for name, value in alone.items():
        if value is not None:
            raise InputError(
                f"{name} goes with --backend onnxruntime or openvino; engines run on the GPU they were built for"
            )
    from vtc.runtime.tensorrt.backend import TensorRT

    return TensorRT.load(manifest, options)

"""What a user may say about how a bundle is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vtc.errors import InputError

MOST_THREADS = 1024
"""CPU threads of one operator."""

BACKENDS = ("onnxruntime", "openvino", "tensorrt")
"""What can run a bundle; the first is the default."""


@dataclass(frozen=True)
class RuntimeOptions:
    """How a bundle is run; None leaves a choice to the runtime.

    Attributes
    ----------
    backend : str
        ``onnxruntime``, ``openvino``, or ``tensorrt`` for the engines that ``vtc build`` made of the bundle.
    provider : str or None
        For ``onnxruntime`` ``cpu``, ``cuda``, or its name of any other execution provider; None takes CUDA where it
        works. For ``openvino`` ``cpu``, ``gpu``, ``npu``, or its name of another device; None takes the processor.
    precision : str or None
        One that the bundle holds, or one of its variants; for ``openvino`` also ``bf16``, ``q4-bf16`` and
        ``int8-bf16``, in which graphs of ``fp32``, ``q4`` and ``int8`` are computed in bfloat16. None takes float16 on
        a GPU and float32 on the CPU where there is a choice; a precision is run in the form that suits the backend
        best.
    threads : int or None
        CPU threads of one operator. Not for ``tensorrt``.
    spin : bool
        Whether those threads wait busily for work: faster where the machine is vtc's own, far slower where it is not.
        For ``onnxruntime`` alone.
    engines : str, Path or None
        Directory of the engines. None takes those in the bundle that fit this machine (see
        :func:`vtc.runtime.tensorrt.engine_sets.choose_engines`). For ``tensorrt`` alone.
    verify : bool
        Compare every file's hash with the manifest, and look for NaN and infinity among the weights of graphs; False
        compares sizes.
    image_cache : int
        Bytes of encoded images that are kept, so that a batch of the same pixels (and the same questions, where the
        vision graph reads them, and is not split) skips the vision graph; 0 keeps none. For ``onnxruntime`` alone.

    Raises
    ------
    InputError
        If there can be no such number of threads or bytes, or the backend keeps no images.
    """

    backend: str = BACKENDS[0]
    provider: str | None = None
    precision: str | None = None
    threads: int | None = None
    engines: str | Path | None = None
    verify: bool = True
    spin: bool = False
    image_cache: int = 0

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise InputError(f"threads must be between 1 and {MOST_THREADS}, not {self.threads}")
        if self.image_cache < 0:
            raise InputError(f"image_cache must be at least 0 bytes, not {self.image_cache}")
        if self.image_cache and self.backend != "onnxruntime":
            raise InputError(f"image_cache is for onnxruntime; {self.backend} keeps no images, leave it out")

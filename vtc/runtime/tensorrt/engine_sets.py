"""Which of a bundle's engine sets runs on this machine, and why others do not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vtc.artifact import MANIFEST
from vtc.bundle.engines import FOLDER, EngineSet, load_engines
from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError, InputError, MissingDependency, VtcError
from vtc.runtime.nvidia import gpu_here, import_tensorrt
from vtc.runtime.tensorrt.cuda import Cuda

INSTALL = {
    "tensorrt": "pip install 'vtc[tensorrt]', with NVIDIA's package index",
    "tensorrt_rtx": "pip install 'vtc[rtx]'",
}
FALLBACK = "--backend onnxruntime runs without"


@dataclass(frozen=True)
class Chosen:
    """An engine set that runs here.

    Attributes
    ----------
    engines : EngineSet
    library : module
        The TensorRT that it was built with.
    cuda : Cuda
    """

    engines: EngineSet
    library: Any
    cuda: Cuda


def choose_engines(
    manifest: Manifest, directory: str | Path | None = None, precision: str | None = None, *, verify: bool = True
) -> Chosen:
    """The engine set to run a bundle with.

    Parameters
    ----------
    manifest : Manifest
    directory : path or None
        Of the set. None looks in the bundle: of several that run here, one of full TensorRT goes before one of
        TensorRT for RTX, as it was tuned on such a GPU; then float16 before other precisions; then the first by name.
    precision : str or None
        None takes any.
    verify : bool
        Compare the files' hashes with the set's manifest; False compares sizes.

    Raises
    ------
    BundleError
        If a set is damaged, or was built from another bundle, with another TensorRT or for another GPU.
    MissingDependency
        If TensorRT or cuda-python is not installed.
    InputError
        If there is no set, or no GPU.
    """
    found = [Path(directory)] if directory is not None else _sets_of(manifest.root)
    if not found:
        raise InputError(f"{manifest.root}: holds no engines; make some with vtc build {manifest.root} --target T")
    fit: list[Chosen] = []
    reasons: list[VtcError] = []
    for root in found:
        try:
            engines = load_engines(root, manifest, verify=verify)
            if precision not in (None, engines.precision):
                raise InputError(f"{root}: holds {engines.precision} engines, not {precision}")
            fit.append(Chosen(engines, _library(engines), _gpu(engines)))
        except VtcError as reason:
            reasons.append(reason)
    if not fit and len(reasons) == 1:
        raise reasons[0]
    if not fit:
        raise InputError(f"{manifest.root}: none of its engines run here: {'; '.join(map(str, reasons))}")
    return min(fit, key=lambda chosen: _preference(chosen.engines))


def _sets_of(bundle: Path) -> list[Path]:
    folder = bundle / FOLDER
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))


def _preference(engines: EngineSet) -> tuple[bool, bool, str]:
    return engines.library != "tensorrt", engines.precision != "fp16", engines.root.name


def _library(engines: EngineSet) -> Any:
    name = engines.library
    try:
        library = import_tensorrt(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependency(
            f"{engines.root}: {name} cannot be imported ({error}): {INSTALL[name]}; {FALLBACK}"
        ) from error
    if library.__version__ != engines.library_version:
        raise BundleError(
            f"{engines.root}: was built with {name} {engines.library_version}, and {library.__version__} is installed; "
            "run vtc build again"
        )
    return library


def _gpu(engines: EngineSet) -> Cuda:
    gpu = gpu_here()
    if gpu is None:
        raise InputError(f"{engines.root}: engines need an NVIDIA GPU and its driver, and there is none; {FALLBACK}")
    if gpu.capability not in engines.capabilities:
        raise BundleError(
            f"{engines.root}: was built for GPUs of compute capability {', '.join(engines.capabilities)}, and this one "
            f"has {gpu.capability}; run vtc build on this machine, or with --capability {gpu.capability}"
        )
    return connect()


@cache
def connect() -> Cuda:
    """The first GPU; all bundles of a process share it, and its stream."""
    return Cuda()

"""Where a bundle can run, what engines can be built for, and whether either can be done here."""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.target import Target
from exporters.targets import TARGETS as ENGINE_TARGETS
from vtc.errors import VtcError
from vtc.runtime.versions import package_version

JETSON_RELEASE = Path("/etc/nv_tegra_release")
"""Is on every Jetson, and nowhere else."""


@dataclass(frozen=True)
class Runtime:
    """ONNX Runtime or OpenVINO with the hardware under it, which runs a bundle as it is.

    Attributes
    ----------
    name, summary
        What the user calls it, and what it is.
    provider
        ``--provider`` of `vtc run` that asks for it.
    install
        How to get it where it is missing.
    backend
        ``--backend`` likewise.
    """

    name: str
    summary: str
    provider: str
    install: str
    backend: str = "onnxruntime"


RUNTIMES = (
    Runtime("onnxruntime-cpu", "ONNX Runtime on the processor", "cpu", "pip install onnxruntime"),
    Runtime(
        "onnxruntime-cuda",
        "ONNX Runtime on an NVIDIA GPU",
        "cuda",
        "NVIDIA driver, onnxruntime-gpu, and the CUDA and cuDNN it was built for",
    ),
    Runtime("openvino-cpu", "OpenVINO on the processor", "cpu", "pip install 'vtc[openvino]'", "openvino"),
    Runtime("openvino-gpu", "OpenVINO on an Intel GPU", "gpu", "vtc[openvino] and Intel's GPU driver", "openvino"),
    Runtime("openvino-npu", "OpenVINO on an Intel NPU", "npu", "vtc[openvino] and Intel's NPU driver", "openvino"),
)


@dataclass(frozen=True)
class Entry:
    """A target, and whether this machine can serve it.

    Attributes
    ----------
    name, summary : str
    kind : str
        ``runtime`` runs bundles as they are, ``engines`` are built from them.
    works : bool
        Whether bundles run, or engines can be built, here.
    state : str
        In words; where it does not work, why.
    install : str
        What to do where it does not work.
    facts : dict
        All that is known of it, as plain JSON data.
    """

    name: str
    summary: str
    kind: str
    works: bool
    state: str
    install: str
    facts: dict[str, Any]


def entries() -> Iterator[Entry]:
    """Yield all targets, runtimes first."""
    for runtime in RUNTIMES:
        missing = what_is_missing(runtime)
        yield Entry(
            runtime.name,
            runtime.summary,
            "runtime",
            not missing,
            missing or "available",
            runtime.install,
            {"backend": runtime.backend, "provider": runtime.provider},
        )
    for target in ENGINE_TARGETS:
        works, state = can_build(target)
        yield Entry(target.name, target.summary, "engines", works, state, target.install, engine_facts(target))


def what_is_missing(runtime: Runtime) -> str:
    """Say why a runtime does not work here; empty when a session on it starts, or OpenVINO finds the device."""
    from vtc.runtime.onnxruntime.providers import choose_provider
    from vtc.runtime.openvino.device import choose_device

    try:
        if runtime.backend == "openvino":
            choose_device(runtime.provider)
        else:
            choose_provider(runtime.provider)
    except VtcError as error:
        return str(error).partition(";")[0]  # what follows is advice to `vtc run`
    return ""


def can_build(target: Target) -> tuple[bool, str]:
    """Tell whether engines for a target can be built on this machine, and in words why; nothing is imported for it."""
    from vtc.runtime.nvidia import cuda_devices

    if target.jetson and not JETSON_RELEASE.exists():
        return False, "this is no Jetson; engines are built on the board"
    if not target.jetson and JETSON_RELEASE.exists():
        return False, "this is a Jetson"
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    if machine != target.machine:
        return False, f"this machine is {machine}, engines are built on {target.machine}"
    version = library_version(target.library)
    if version is None:
        return False, f"{target.library} is not installed"
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if found and not target.includes(found):
        return (
            False,
            f"{target.library} {version} is installed, and this is {target.oldest} or newer {target.release[0]}.x",
        )
    if cuda_devices():
        return True, f"builds engines with {target.library} {version}"
    if target.ahead_of_time:
        return True, f"builds engines with {target.library} {version}; no NVIDIA GPU to run them on"
    return False, f"no NVIDIA GPU, which {target.library} builds on"


def library_version(library: str) -> str | None:
    """Return the version of a TensorRT that is installed; empty where it does not say, None where there is none."""
    version = package_version(library)
    if version is None and importlib.util.find_spec(library) is not None:
        return ""
    return version


def engine_facts(target: Target) -> dict[str, Any]:
    """Return all that the table says of a target, as plain JSON data."""
    facts = asdict(target)
    operators = facts.pop("operators")
    facts["release"] = target.oldest
    facts["operators"] = {
        name: sorted(value) if isinstance(value, frozenset) else value for name, value in operators.items()
    }
    for already in ("name", "summary", "install"):
        del facts[already]
    return facts

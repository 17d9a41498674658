"""OpenVINO itself: the module, the device to run on, and how a graph is to be compiled for it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from vtc.errors import InputError, MissingDependency
from vtc.runtime.quiet import quiet_stderr

DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
"""What `--provider` takes → OpenVINO's name."""
CAPABILITIES = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}
"""What is computed in, in OpenVINO's words → how a device says that it can."""
WIDTHS = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of a number."""
ROUNDED_TOGETHER = 32
"""Values of an activation that share a scale where they are rounded to 8 bits."""


@cache
def import_openvino() -> Any:
    """The openvino module.

    Raises
    ------
    MissingDependency
        If it is not installed or cannot be loaded.
    """
    try:
        with quiet_stderr():
            openvino: Any = importlib.import_module("openvino")
            importlib.import_module("openvino.opset13")
            importlib.import_module("openvino.passes")
    except ImportError as error:
        raise MissingDependency(f"openvino cannot be imported ({error}): pip install 'vtc[openvino]'") from error
    return openvino


@cache
def core() -> Any:
    """What compiles graphs; one for the process."""
    with quiet_stderr():
        return import_openvino().Core()


@dataclass(frozen=True)
class Device:
    """Where graphs run.

    Attributes
    ----------
    name : str
        OpenVINO's.
    """

    name: str

    @property
    def provider(self) -> str:
        """The name for people."""
        return f"openvino {self.name}"

    def computes(self, numbers: str) -> bool:
        """Whether it has instructions for ``f32``, ``f16`` or ``bf16``."""
        return CAPABILITIES[numbers] in core().get_property(self.name, "OPTIMIZATION_CAPABILITIES")

    def properties(self, numbers: str, threads: int | None, rounds_activations: bool) -> dict[str, Any]:
        """How a graph is to be compiled: for one request at a time.

        OpenVINO's cache of compiled graphs stays off: on the CPU it saves little and takes as much space as the
        weights, and what has changed in it since is run without a check.

        Parameters
        ----------
        numbers : str
            ``f32``, ``f16`` or ``bf16``: what is computed in, and what keys and values are kept in. Left alone,
            OpenVINO takes bf16 wherever the processor has it, and 8 bits for the cache.
        threads : int or None
            CPU threads; None leaves it to OpenVINO.
        rounds_activations : bool
            Whether what meets weights of few bits may be rounded to 8 bits, which OpenVINO does if left alone.

        Raises
        ------
        InputError
            If threads are asked for on a device that has none.
        """
        wanted: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": numbers,
            "KV_CACHE_PRECISION": numbers,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": ROUNDED_TOGETHER if rounds_activations else 0,
            # A bundle shares its machine: a thread that is tied to a busy core waits for it.
            "ENABLE_CPU_PINNING": False,
        }
        known = core().get_property(self.name, "SUPPORTED_PROPERTIES")
        if threads is not None:
            if "INFERENCE_NUM_THREADS" not in known:
                raise InputError(f"--threads is for the processor; {self.provider} has none to count")
            wanted["INFERENCE_NUM_THREADS"] = threads
        return {name: value for name, value in wanted.items() if name in known}


def choose_device(wanted: str | None = None) -> Device:
    """The device to run on.

    Parameters
    ----------
    wanted : str or None
        ``cpu``, ``gpu`` or ``npu``, or OpenVINO's own name of a device, such as ``GPU.1``; None is the processor.

    Raises
    ------
    InputError
        If it is not there.
    """
    available: list[str] = core().available_devices
    name = DEVICES.get((wanted or "cpu").lower(), wanted or "")
    if name.partition(".")[0] not in {one.partition(".")[0] for one in available}:
        found = ", ".join(one.lower() for one in available)
        raise InputError(f"provider '{wanted}' is no device that OpenVINO finds here; available: {found}")
    return Device(name)

"""What this machine has of NVIDIA's: a driver, GPUs, TensorRT. The driver is asked itself, without a Python package."""

from __future__ import annotations

import ctypes
import importlib
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from vtc.runtime.quiet import quiet_stderr

# Of CUdevice_attribute.
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes
    ----------
    capability : str
        Its generation (SM), such as ``8.7``.
    memory : int
        Bytes in all.
    integrated : bool
        Whether that is the machine's RAM, as on Jetson.
    """

    capability: str
    memory: int
    integrated: bool


@cache
def cuda_devices() -> int:
    """Count the NVIDIA GPUs that the driver offers; 0 without a driver."""
    driver, count = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu_here() -> Gpu | None:
    """Describe the first GPU that the driver offers; None without a driver or a GPU."""
    driver, device, memory = _driver(), ctypes.c_int(0), ctypes.c_size_t(0)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None

    def attribute(number: int) -> int:
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(f"{attribute(_MAJOR)}.{attribute(_MINOR)}", memory.value, bool(attribute(_INTEGRATED)))


def _driver() -> Any:
    """Load NVIDIA's driver, ready to be asked for its GPUs; None where there is none that works."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
        return driver if driver.cuInit(0) == 0 else None
    except (OSError, AttributeError):
        return None


def import_tensorrt(name: str) -> Any:
    """Import a TensorRT.

    Parameters
    ----------
    name : str
        ``tensorrt`` or ``tensorrt_rtx``.

    Returns
    -------
    module

    Raises
    ------
    ImportError, OSError, RuntimeError
        If it is not installed or does not load.
    """
    with quiet_stderr():
        return importlib.import_module(name)

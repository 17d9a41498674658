"""The GPU at hand, as its driver describes it: needs neither CUDA's toolkit nor a Python package."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from vtc.runtime.onnxruntime.providers import cuda_driver

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


def gpu_here() -> Gpu | None:
    """The first GPU that the driver offers; None without a driver or a GPU."""
    driver, device, memory = cuda_driver(), ctypes.c_int(0), ctypes.c_size_t(0)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None

    def attribute(number: int) -> int:
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(f"{attribute(_MAJOR)}.{attribute(_MINOR)}", memory.value, bool(attribute(_INTEGRATED)))

"""Whether a machine has the memory to build an engine, told before hours are spent on finding out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vtc.errors import InputError
from vtc.runtime.nvidia import Gpu

COPIES = 3.25
"""Bytes of RAM that a build takes at its peak for each byte of weights.

Measured with TensorRT for RTX 1.7.1 on MatMuls of 128, 256 and 512 MB, float32 and float16, weights inside and beside
the graph, one profile and two that share weights: peaks of 599, 985 and 1757 MB, which is 3.0 bytes a byte and 213 MB;
and on a decoder of 945 MB, which took 3558 MB.
Full TensorRT was not measured; its documentation names two copies at least.
"""

BASE = 2**29
"""Bytes of RAM that Python and the libraries take; measured: 213 MB, without CUDA, which wants some itself."""

GIB = 2**30


@dataclass(frozen=True)
class Need:
    """Bytes that a build takes.

    Attributes
    ----------
    ram : int
    device : int
        Of the GPU; 0 where nothing runs during a build.
    """

    ram: int
    device: int


def need(weights: int, *, runs: bool, tensors: int = 0, workspace: int = 0) -> Need:
    """Estimate what the build of one engine takes.

    Parameters
    ----------
    weights : int
        Bytes of the graph's files.
    runs : bool
        Whether the builder runs what it tries on the GPU, as full TensorRT does.
    tensors : int
        Bytes of the largest inputs of all profiles.
    workspace : int
        Bytes that the builder may use besides; 0: what there is.
    """
    return Need(int(COPIES * weights) + BASE, weights + tensors + workspace if runs else 0)


def check_memory(what: str, wanted: Need, gpu: Gpu | None, *, available: int | None = None) -> None:
    """Refuse a build that cannot fit.

    Parameters
    ----------
    what : str
        Name of the graph.
    wanted : Need
    gpu : Gpu or None
        Where the RAM is its memory, both have to fit there together.
    available : int or None
        Bytes of RAM; None asks the system.

    Raises
    ------
    InputError
        If there is less RAM, or GPU memory, than the build takes.
    """
    ram = available_ram() if available is None else available
    shared = gpu is not None and gpu.integrated
    wants_ram = wanted.ram + (wanted.device if shared else 0)
    if ram is not None and wants_ram > ram:
        raise InputError(
            f"{what}: building its engine takes about {wants_ram / GIB:.1f} GiB of RAM, and {ram / GIB:.1f} GiB are "
            f"free; stop other programs, add swap{', give less --workspace' if shared else ''}, or export a smaller "
            "--precision"
        )
    if gpu is not None and not shared and wanted.device > gpu.memory:
        raise InputError(
            f"{what}: building its engine takes about {wanted.device / GIB:.1f} GiB of GPU memory, and the GPU has "
            f"{gpu.memory / GIB:.1f} GiB; give less --workspace or smaller limits, or export a smaller --precision"
        )


def available_ram(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of RAM and swap that programs can still have; None where the system does not tell."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
    if "MemAvailable" not in sizes:
        return None
    return sizes["MemAvailable"] + sizes.get("SwapFree", 0)

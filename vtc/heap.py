"""What becomes of memory that is freed."""

from __future__ import annotations

import ctypes
import platform

LARGE = 2**17
_M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""


def return_large_blocks() -> None:
    """Have freed blocks of 128 KiB and more go back to the system at once, for the rest of this process.

    That is where glibc begins; but it raises the limit, up to 32 MiB, to the size of whatever is freed. Weights freed
    then stay with the process, in holes that the next weights do not fit into. Does nothing elsewhere.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)

"""What ONNX Runtime has to be told of the processor."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


@cache
def has_vnni(info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether an x86 processor adds up products of 8 bits in 32, as VNNI does.

    Others add two of them in 16, which overflows, unless ONNX Runtime is told to take more time
    (``session.x64quantprecision``). So a system that does not say what its processor has gets False.

    Parameters
    ----------
    info : Path
        Linux's file about the processor.
    """
    try:
        flags = info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r"^flags\s*:.*\b(avx512_vnni|avx_vnni)\b", flags, re.MULTILINE) is not None

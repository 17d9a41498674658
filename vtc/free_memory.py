"""What memory this machine has to give."""

from __future__ import annotations

import re
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_ram() -> int | None:
    """Bytes that a process can have without others being pushed out; None where the system does not tell.

    A container's limit counts where it is lower.
    """
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    free = int(found[1]) * 1024 if found else None
    limits = [free, _container()]
    return min((one for one in limits if one is not None), default=None)


def _container() -> int | None:
    """What a control group (version 2) leaves, caches of files taken as free; None where there is no limit."""
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return None
    return max(0, limit - used + (int(cached[1]) if cached else 0))

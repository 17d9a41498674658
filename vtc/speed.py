"""What this machine does in a second, by a measurement of a few tenths of one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import cache

from vtc.plan.costs import Speed

ROWS, INNER, COLUMNS = 512, 1536, 2240
"""Of a matrix product as a decoder of 2 billion weights has them."""
COPIED = 2**24
"""Numbers in float32 that are copied: more than caches hold."""
HASHED = 2**24
"""Bytes."""
TIMES = 2


@cache
def measured_speed(dtype: str, on_gpu: bool = False) -> Speed:
    """Measure it, once in a process; other programs that compute meanwhile slow it down, as they will the work.

    Parameters
    ----------
    dtype : str
        What matrices are multiplied in: ``float32``, ``bfloat16`` or ``float16``.
    on_gpu : bool
    """
    import torch

    device = "cuda" if on_gpu else "cpu"
    kind = getattr(torch, dtype)
    rows, columns = (torch.ones(n, INNER, dtype=kind, device=device) for n in (ROWS, COLUMNS))
    source = torch.zeros(COPIED, device=device)
    target = torch.zeros_like(source)

    def done() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    data = bytes(HASHED)
    return Speed(
        flops=2 * ROWS * INNER * COLUMNS / _seconds(lambda: torch.nn.functional.linear(rows, columns), done),
        moved=2 * source.nbytes / _seconds(lambda: target.copy_(source), done),
        hashed=HASHED / _seconds(lambda: hashlib.sha256(data).digest()),
    )


def _seconds(work: Callable[[], object], done: Callable[[], object] = lambda: None) -> float:
    """The shortest time that it took, the first one aside, which also gets its memory."""
    took = []
    for _ in range(1 + TIMES):
        begin = time.perf_counter()
        work()
        done()
        took.append(time.perf_counter() - begin)
    return min(took[1:])

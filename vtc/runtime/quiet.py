"""Keeps what native libraries write to stderr away from the user."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_bodies = 0
_stderr: int | None = None


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what native libraries write to stderr while the body runs; several threads may be in bodies at once."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _bodies, _stderr
    with _lock:
        _bodies += 1
        if _bodies > 1:
            return
        _flush()
        with contextlib.suppress(OSError):  # there may be no stderr, or no file handle to keep it by
            _stderr = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)


def _leave() -> None:
    global _bodies, _stderr
    with _lock:
        _bodies -= 1
        if _bodies or _stderr is None:
            return
        _flush()
        os.dup2(_stderr, 2)
        os.close(_stderr)
        _stderr = None


def _flush() -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

"""Keeps what native libraries write to stderr away from the user."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_TURN = threading.RLock()
"""There is one stderr; of two threads that turn it away and back, one would take the other's nowhere for it."""


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what native libraries write to stderr."""
    with _TURN:
        yield from _quiet()


def _quiet() -> Iterator[None]:
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # no stderr to write to
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)

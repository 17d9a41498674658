"""Room for the frames of Python functions.

CPython 3.11 and later take memory for frames 16 KiB at a time from the system, and give it back at once: where a loop
calls a function whose frame is the first beyond such a piece, every call costs two system calls and the faults of
fresh pages. Tracing a model is made of such loops; a seventh of the time of an export went there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

SLOTS = 2**17
"""Values of 8 bytes that the frame of a function asks for; a piece of memory is the power of two above that."""


def with_room_for_frames(call: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that the frames of all that it calls have 1 MiB in one piece.

    It does so by a frame that claims a large stack and uses none of it; pages that nothing touches cost nothing.
    """

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return call(*args, **kwargs)

    run.__code__ = run.__code__.replace(co_stacksize=SLOTS)
    return functools.wraps(call)(run)

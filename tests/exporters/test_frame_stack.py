"""Frames of functions that an export calls come out of one piece of memory."""

from __future__ import annotations

import resource

import pytest

from exporters.frame_stack import with_room_for_frames

CALLS = 3000


def leaf() -> int:
    return 0


def calls_at(depth: int) -> None:
    """Call a function often, from a depth of the stack."""
    if depth:
        calls_at(depth - 1)
        return
    for _ in range(CALLS):
        leaf()


def faults(depth: int) -> int:
    """Pages that were given anew meanwhile."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    calls_at(depth)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def at_all_depths() -> int:
    """The most faults at any of the depths that a piece of 16 KiB takes."""
    return max(faults(depth) for depth in range(300))


def test_calls_take_no_memory_of_the_system_at_any_depth() -> None:
    if at_all_depths() < CALLS:
        pytest.skip("this Python keeps what it took")
    assert with_room_for_frames(at_all_depths)() < CALLS / 10


def test_arguments_result_and_name_are_the_functions_own() -> None:
    @with_room_for_frames
    def add(first: int, *, second: int) -> int:
        """Add."""
        return first + second

    assert add(1, second=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    with pytest.raises(TypeError):
        add(1)

"""Batches whose rows cannot all be run together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_parts(keys: Sequence[Hashable], run: Callable[[list[int]], Sequence[T]]) -> list[T]:
    """Run those rows of a batch together that share a key.

    Parameters
    ----------
    keys : sequence of B hashable
    run : callable
        From rows of one key, ascending, to as many results.

    Returns
    -------
    list of B results
        In the batch's order.
    """
    parts: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        parts.setdefault(key, []).append(row)
    found: dict[int, T] = {}
    for rows in parts.values():
        found.update(zip(rows, run(rows), strict=True))
    return [found[row] for row in range(len(keys))]

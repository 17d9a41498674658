"""Each of some values in each place of an area's JSON files: what drawing finds by luck, this finds for certain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.area import Document
from tests.fuzz.areas import AREAS
from tests.fuzz.case import Case, Change
from tests.fuzz.hostile import places

VALUES: list[Any] = [
    *(0, 1, -1, 2, 7, 10**6, 10**12, 2**31, -(2**31), 2**63, 10**30, 0.0, 1.5, -0.5, 1e300, float("nan"), float("inf")),
    *("", "x", "1", None, True, False, {}, {"a": 1}),
    *([], [0], [-1], [1, 2], [10**12], [None], ["a", "a"], [[]], [[0]]),
]


def grid(area: str, bases: Path, seed: int) -> Iterator[Case]:
    """Cases of one change each, in an order that the seed draws.

    Parameters
    ----------
    area : str
    bases : Path
        The directory with the area's bases.
    seed : int
    """
    found = [(document, change) for document in AREAS[area].documents for change in _changes(document, bases)]
    Random(seed).shuffle(found)
    for document, change in found:
        yield Case(area, document.base, (change, *document.then), document.args)


def _changes(document: Document, bases: Path) -> Iterator[Change]:
    file = bases / document.base / document.file
    if not file.exists():
        return
    for path, value in places(json.loads(file.read_text(encoding="utf-8"))):
        yield {"do": "drop", "file": document.file, "path": path}
        for other in (*VALUES, *_near(value)):
            if (type(other), other) != (type(value), value):
                yield {"do": "set", "file": document.file, "path": path, "value": other}


def _near(value: Any) -> list[Any]:
    """Values of the same type that are not far."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [value + 1, value - 1, value * 2, -value]
    if isinstance(value, list):
        return [value[:-1], value + value, value[::-1], [value]]
    return []

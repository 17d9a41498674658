"""Tables with a line for each class of a recipe's entries, and what is said where a line is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Line = TypeVar("Line")


def line(table: Mapping[Any, Line], entry: object, where: str) -> Line:
    """Return what a table says of an entry's class.

    Parameters
    ----------
    table
        Class to line.
    entry
        What a recipe says.
    where
        The table's name and module, for the message: ``NUMBERS of vtc.plan.stages``.

    Raises
    ------
    AssertionError
        There is no such line: a fault of whoever added the class, not of the user.
    """
    try:
        return table[type(entry)]
    except KeyError:
        raise AssertionError(f"{where} has no line for {type(entry).__name__}; see docs/extending.md") from None

"""The smallest case that still fails in the same way."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.case import Case, Change

TRIES = 200


def shrink(case: Case, fails: Callable[[Case], bool], most: int = TRIES) -> Case:
    """Take away changes, then parts of the texts that changes write, as long as the case fails (delta debugging).

    Parameters
    ----------
    case : Case
        One that fails.
    fails : callable
        Whether another case fails in the same way.
    most : int
        It is called so many times at most.
    """
    tries = iter(range(most))

    def still(changes: list[Change]) -> bool:
        return next(tries, None) is not None and fails(case.with_changes(changes))

    changes = smaller(list(case.changes), still)
    for number, change in enumerate(changes):
        # What makes a text wrong or right is in it, so it is taken whole.
        if change["do"] == "write" and len(change.get("text", "")) > 1 and "is" not in change:

            def shorter(text: list[str], number: int = number, change: Change = change) -> bool:
                return still([*changes[:number], {**change, "text": "".join(text)}, *changes[number + 1 :]])

            changes[number] = {**change, "text": "".join(smaller(list(change["text"]), shorter))}
    return case.with_changes(changes)


def smaller(items: list[Change] | list[str], fails: Callable[..., bool]) -> list:  # type: ignore[type-arg]
    """A part of a list that still fails, of which no single item can be left out while tries last."""
    size = len(items)
    while size:
        at = 0
        while at < len(items):
            rest = items[:at] + items[at + size :]
            if fails(rest):
                items = rest
            else:
                at += size
        size //= 2
    return items

"""Puts questions batch by batch: what cannot be asked is left out, what is answered is noted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vtc.data.datasets import Item
from vtc.errors import BundleError, InputError, MissingDependency, ModelError, OutOfResources
from vtc.evaluate.notes import Notes
from vtc.progress import Report, silent

NOT_OF_AN_ITEM = (BundleError, ModelError, MissingDependency, OutOfResources)
"""Faults that another question would meet as well."""

MAX_SKIPPED = 0.1
"""Share of the questions that may be left out."""


@dataclass(frozen=True)
class Effort:
    """How the questions are put: B at a time, with answers of at most so many tokens."""

    batch_size: int = 16
    max_new_tokens: int = 32


@dataclass
class Faults:
    """Questions that cannot be asked, and how many there may be.

    Attributes
    ----------
    share : float
        Of all questions, at most so many; one is let pass in any case, unless it is 0.
    of : int
        Number of all questions.
    found : dict
        Why, by the item's id.
    """

    share: float = MAX_SKIPPED
    of: int = 0
    found: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def limit(self) -> int:
        """How many there may be."""
        return max(1, int(self.share * self.of)) if self.share else 0

    def add(self, item: Item, why: Exception) -> None:
        """Leave an item out.

        Raises
        ------
        InputError
            If that makes too many; the message names the first.
        """
        self.found[item.id] = {"id": item.id, "where": item.where, "why": str(why)}
        if len(self.found) > self.limit or len(self.found) == self.of:
            first = next(iter(self.found.values()))
            place = f"{first['where']}: " if first["where"] else ""
            count = len(self.found)
            raise InputError(
                f"{place}item '{first['id']}' cannot be asked: {first['why']} ({count} of {self.of} questions cannot, "
                f"and {self.limit} may be left out; --max-skipped takes another share)"
            )


@dataclass
class Asking:
    """How questions are put, and what came of them so far."""

    effort: Effort = Effort()
    faults: Faults = field(default_factory=Faults)
    notes: Notes = field(default_factory=Notes)
    progress: Report = silent

    def all(
        self,
        items: Sequence[Item],
        run: Callable[[Sequence[Item]], Sequence[dict[str, Any]]],
        usable: Callable[[Mapping[str, Any]], bool],
        role: str,
        label: str,
        part: Callable[[Item], int] = lambda _: 0,
    ) -> dict[str, dict[str, Any]]:
        """Run every item that can be, and that no note tells of.

        Parameters
        ----------
        items : sequence of Item
        run : callable
            From a batch of items to what comes of each, as plain JSON.
        usable : callable
            Whether a note is one that `run` could have made.
        role : str
            What is noted, in a word.
        label : str
            What progress is told under.
        part : callable
            Only items for which it is equal are run together.

        Returns
        -------
        dict
            What came of each, by the item's id.
        """
        noted = ((item, self.notes.get(role, item)) for item in items)
        found = {item.id: note for item, note in noted if note is not None and usable(note)}
        parts: dict[int, list[Item]] = {}
        for item in items:
            if item.id not in found and item.id not in self.faults.found:
                parts.setdefault(part(item), []).append(item)
        done = len(items) - sum(map(len, parts.values()))
        for members in parts.values():
            for start in range(0, len(members), self.effort.batch_size):
                batch = members[start : start + self.effort.batch_size]
                new = self._tried(batch, run)
                self.notes.add(role, new)
                found.update((item.id, result) for item, result in new)
                done += len(batch)
                self.progress(label, done, len(items))
        if not parts:
            self.progress(label, done, len(items))
        return found

    def _tried(
        self, batch: Sequence[Item], run: Callable[[Sequence[Item]], Sequence[dict[str, Any]]]
    ) -> list[tuple[Item, dict[str, Any]]]:
        """Run a batch, and where that fails, its items one by one to find those that are at fault."""
        try:
            return list(zip(batch, run(batch), strict=True))
        except NOT_OF_AN_ITEM:
            raise
        except InputError as error:
            if len(batch) == 1:
                self.faults.add(batch[0], error)
                return []
        return [pair for item in batch for pair in self._tried([item], run)]

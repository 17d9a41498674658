"""One case: a base directory, changes to its files, and a command that must deal with the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Change = dict[str, Any]
"""What is done to a file, see :mod:`tests.fuzz.changes`. ``"is": "wrong"`` marks what must be refused, ``"is":
"right"`` what must be accepted; nothing is expected of the others but a clean end."""
Expectation = Literal["refused", "accepted", "either"]


@dataclass(frozen=True)
class Case:
    """What is tried.

    Attributes
    ----------
    area : str
    base : str
        Directory of the area that the changes start from.
    changes : tuple of Change
    args : tuple of str
        Command line of ``vtc``, run in the changed directory.
    """

    area: str
    base: str
    changes: tuple[Change, ...]
    args: tuple[str, ...]

    @property
    def expects(self) -> Expectation:
        """One wrong change makes a case wrong; a case is right where all of its changes are."""
        marks = [change.get("is") for change in self.changes]
        if "wrong" in marks:
            return "refused"
        return "accepted" if all(mark == "right" for mark in marks) else "either"

    def with_changes(self, changes: Sequence[Change]) -> Case:
        """The same with other changes."""
        return Case(self.area, self.base, tuple(changes), self.args)

    def write(self, path: Path, about: str) -> None:
        """Write the case as a seed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"about": about, "base": self.base, "changes": self.changes, "args": self.args}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii")


def read_case(path: Path, area: str) -> Case:
    """Read a seed; its area is the name of its directory."""
    content = json.loads(path.read_text(encoding="ascii"))
    return Case(area, content["base"], tuple(content["changes"]), tuple(content["args"]))

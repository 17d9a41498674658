"""What does not fit, gathered so that all of it can be said at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from vtc.errors import RecipeError, all_faults
from vtc.recipe import RecipeSource
from vtc.recipe.yaml_lines import KeyPath


@dataclass
class Faults:
    """Problems of one recipe, each with the place in its text."""

    source: RecipeSource
    found: list[tuple[KeyPath, str]] = field(default_factory=list)

    def add(self, stage: int, key: str, problem: str) -> None:
        """Note a problem with a key of stage number `stage`, or with all of it when `key` is empty."""
        self.add_at(("stages", stage, *(key.split(".") if key else ())), problem)

    def add_at(self, path: KeyPath, problem: str) -> None:
        """Note a problem with the value at `path`."""
        if (path, problem) not in self.found:  # budgets of one recipe may share it
            self.found.append((path, problem))

    def raise_found(self) -> None:
        """Raise what was noted, if anything was.

        Raises
        ------
        RecipeError
            With one line for each problem, in the order of the recipe's text.
        """
        if self.found:
            ordered = sorted(self.found, key=lambda fault: (self.source.line(fault[0]), fault[0][:2]))
            raise RecipeError(all_faults(self.source.message(path, problem) for path, problem in ordered))

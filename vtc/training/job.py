"""One trained part to be made: what every trainer is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.compressed.build import build_modules
from vtc.models.base import VLMAdapter
from vtc.plan import TokenPlan, plan
from vtc.progress import Report, silent
from vtc.recipe import Recipe
from vtc.selectors.trained import TrainedPart, trained_part


@dataclass(frozen=True)
class TrainingJob:
    """A stage whose part is to be trained.

    Attributes
    ----------
    adapter : VLMAdapter
        The model, which training leaves as it is.
    model_digest : str
        SHA-256 of its checkpoint.
    recipe : Recipe
        What is done to it. Stages before this one are resolved.
    number : int
        Of the stage.
    path : Path
        The file to write. The log goes beside it (:func:`vtc.selectors.trained.log_path`), and so does, under a hidden
        name, the state of an unfinished run, which is taken up again.
    source : str
        What the data are called: ``reference`` or a directory with data.jsonl.
    report : callable
    """

    adapter: VLMAdapter
    model_digest: str
    recipe: Recipe
    number: int
    path: Path
    source: str
    report: Report = silent

    @property
    def plan(self) -> TokenPlan:
        """The recipe resolved against the model."""
        return plan(self.recipe, self.adapter.facts)

    @property
    def entry(self) -> Any:
        """What the recipe says of the part: an entry of a selector or a stage."""
        return next(entry for number, _, entry in self.recipe.trained() if number == self.number)


Trainer = Callable[[TrainingJob], None]
"""Writes the file of a trained part, or leaves it as it is where this very run has finished."""


def new_part(adapter: VLMAdapter, recipe: Recipe, number: int) -> TrainedPart:
    """The trained part of stage `number` as it is created, before any training."""
    before = recipe.first(number + 1)
    modules = build_modules(adapter, before, plan(recipe, adapter.facts), "", empty=range(number + 1))
    part = trained_part(modules[number])
    if part is None:
        raise AssertionError(f"stage {number} has no trained part")
    return part

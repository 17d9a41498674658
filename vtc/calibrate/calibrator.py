"""Turns what a recipe leaves ``auto`` into values.

Each choice is made with the stages before it in place and those after it left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vtc.calibrate.choices import CHOICES
from vtc.calibrate.measurements import Measurements
from vtc.calibrate.measuring import Measuring
from vtc.data.samples import Sample
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.progress import Report, silent
from vtc.recipe import Recipe
from vtc.tables import line

PartSource = Callable[[Recipe, int], Path]
"""Called with a recipe and the number of a stage whose trained part is left ``auto``; gives its file."""


def needs_data(recipe: Recipe) -> InputError:
    """What to tell a user who gave no data for a recipe that wants some."""
    return InputError(
        f"recipe {recipe.name} leaves {[*recipe.autos, *recipe.measured][0]} to calibration; give --data DIR"
    )


class Calibrator:
    """Chooses values for a recipe on a model and samples.

    Parameters
    ----------
    adapter : VLMAdapter
    samples : sequence of Sample
    measurements : Measurements
    model_digest : str
    report : callable
        Told what is measured, how many measurements are done and how many there are.
    parts : callable or None
        Finds or trains a trained part; the recipe then starts its paths where that file is.
    """

    def __init__(
        self,
        adapter: VLMAdapter,
        samples: Sequence[Sample],
        measurements: Measurements,
        model_digest: str = "",
        report: Report = silent,
        parts: PartSource | None = None,
    ) -> None:
        self.measuring = Measuring(adapter, samples, measurements, model_digest, report)
        self.parts = parts

    def resolve(self, recipe: Recipe) -> Recipe:
        """The recipe with a value for every ``auto``.

        Raises
        ------
        InputError
            If there is something to calibrate and nothing to calibrate on.
        """
        for key in recipe.autos:
            number = int(key.split(".")[1])
            if key.endswith(".checkpoint") and self.parts is not None:
                file = self.parts(recipe, number)
                recipe = _moved(recipe, file.parent).resolved({key: file.name})
                continue
            if not self.measuring.samples:
                raise needs_data(recipe)
            before, entry = recipe.first(number), recipe.stages[number]
            choose = line(CHOICES, entry, "CHOICES of vtc.calibrate.choices")
            recipe = recipe.resolved({key: choose(entry, before, self.measuring)})
        return recipe


def _moved(recipe: Recipe, directory: Path) -> Recipe:
    """The same recipe with paths that start in another directory, which its trained parts are copied into."""
    for number, _, entry in recipe.trained():
        if entry.checkpoint != "auto":
            file, target = recipe.checkpoint(number), directory / entry.checkpoint
            if file != target.resolve():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    return recipe.with_source(replace(recipe.source, directory=directory))

"""``checkpoint: auto``: the trained part that ships with the model if it fits, a newly trained one if not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vtc.errors import InputError, MissingDependency
from vtc.models.base import VLMAdapter
from vtc.progress import Report, silent
from vtc.recipe import Recipe
from vtc.recipe.trained import Trained
from vtc.reference import reference_part
from vtc.selectors.trained import fits, log_path
from vtc.tables import line
from vtc.training.job import TrainingJob, new_part
from vtc.training.trainers import TRAINERS


@dataclass(frozen=True)
class AutoTrained:
    """Puts the trained part of a stage into a directory, and says where it is.

    Attributes
    ----------
    adapter : VLMAdapter
    model_digest : str
    directory : Path
        Where trained parts go; training goes on there if it was interrupted.
    source : str or None
        Data to train on: ``reference`` or a directory with data.jsonl.
    retrain : bool
        Do not use what is shipped.
    report : callable
    """

    adapter: VLMAdapter
    model_digest: str
    directory: Path
    source: str | None
    retrain: bool = False
    report: Report = silent

    def __call__(self, recipe: Recipe, number: int) -> Path:
        """The trained part's file for stage `number`, whose ``checkpoint`` is ``auto``.

        Raises
        ------
        InputError
            If one has to be trained and there are no data.
        """
        entry, path = _entry(recipe, number), self.path(recipe, number)
        shipped = reference_part(entry.stem)
        if not self.retrain and fits(shipped, new_part(self.adapter, recipe, number), self.model_digest):
            shutil.copyfile(shipped, path)
            shutil.copyfile(log_path(shipped), log_path(path))
            return path
        if self.source is None:
            raise InputError(f"recipe {recipe.name} leaves a {entry.stem} to training; give --data DIR to vtc compress")
        train = line(TRAINERS, entry, "TRAINERS of vtc.training.trainers")
        with _extra_wanted():
            train(TrainingJob(self.adapter, self.model_digest, recipe, number, path, self.source, self.report))
        return path

    def path(self, recipe: Recipe, number: int) -> Path:
        """Where the trained part of stage `number` goes."""
        stem = _entry(recipe, number).stem
        first = not any(entry.stem == stem for earlier, _, entry in recipe.trained() if earlier < number)
        return self.directory / f"{stem if first else f'{stem}-{number}'}.safetensors"

    def discard_others(self, recipe: Recipe) -> None:
        """Remove trained parts and logs that an interrupted run with another recipe left in the directory."""
        own = [self.path(recipe, number) for number in left_open(recipe)]
        keep = {*own, *map(log_path, own)}
        for found in [found for entry in TRAINERS for found in self.directory.glob(f"{entry.stem}*")]:
            if found not in keep:
                found.unlink()


@contextmanager
def _extra_wanted() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependency(f"training needs {error.name}: pip install 'vtc[compress]'") from None


def _entry(recipe: Recipe, number: int) -> Trained:
    return next(entry for stage, _, entry in recipe.trained() if stage == number)


def left_open(recipe: Recipe) -> list[int]:
    """Numbers of the stages whose trained part is left ``auto``."""
    return [number for number, _, entry in recipe.trained() if entry.checkpoint == "auto"]

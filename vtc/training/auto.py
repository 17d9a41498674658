"""``checkpoint: auto``: the trained part that ships with the model if it fits, a newly trained one if not."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
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
from vtc.training.needs import announcement
from vtc.training.trainers import TRAINERS

_log = logging.getLogger(__name__)


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
        shipped = reference_part(entry.shipped)
        if not self.retrain and fits(shipped, new_part(self.adapter, recipe, number), self.model_digest):
            shutil.copyfile(shipped, path)
            shutil.copyfile(log_path(shipped), log_path(path))
            return path
        if self.source is None:
            raise InputError(f"recipe {recipe.name} leaves a {entry.stem} to training; give --data DIR to vtc compress")
        train = line(TRAINERS, entry, "TRAINERS of vtc.training.trainers")
        _log.warning("note: %s", announcement(self.adapter, recipe, number, self.source))
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
        for entry in TRAINERS:
            for file in self.directory.iterdir():
                if file not in keep and any(fnmatchcase(file.name, pattern) for pattern in _made_for(entry.stem)):
                    file.unlink()


def part_names(recipe: Recipe) -> list[str]:
    """Patterns of the names of all files that trained parts come to, notes of unfinished training included."""
    made = [pattern for entry in TRAINERS for pattern in (*_made_for(entry.stem), f".{entry.stem}*")]
    given = [Path(entry.checkpoint) for _, _, entry in recipe.trained() if entry.checkpoint != "auto"]
    return made + [escape(name.as_posix()) for path in given for name in (path, log_path(path))]


def _made_for(stem: str) -> tuple[str, ...]:
    """Patterns of what :meth:`AutoTrained.path` and training call the files of a part and its log."""
    names = (stem, f"{stem}-[0-9]", f"{stem}-[0-9][0-9]")
    return tuple(f"{name}{ending}" for name in names for ending in (".safetensors", ".tmp", "_log.csv"))


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

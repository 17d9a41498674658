"""``checkpoint: auto``: the pruner that ships with the model if it fits, a newly trained one if not."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from vtc.errors import InputError, MissingDependency
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.progress import Report, silent
from vtc.recipe import LearnedSelector, Prune, Recipe
from vtc.reference import reference_pruner
from vtc.training.checkpoint import fits, log_path
from vtc.training.examples import load_examples

PRUNER = "pruner.safetensors"


@dataclass(frozen=True)
class AutoPruner:
    """Puts the pruner of a stage into a directory, and says where it is.

    Attributes
    ----------
    adapter : VLMAdapter
    model_digest : str
    directory : Path
        Where pruners go; training goes on there if it was interrupted.
    source : str or None
        Data to train on: ``reference`` or a directory with data.jsonl.
    retrain : bool
        Do not use the shipped pruner.
    report : callable
    """

    adapter: VLMAdapter
    model_digest: str
    directory: Path
    source: str | None
    retrain: bool = False
    report: Report = silent

    def __call__(self, recipe: Recipe, number: int) -> Path:
        """The pruner's file for stage `number`, whose ``checkpoint`` is ``auto``.

        Raises
        ------
        InputError
            If one has to be trained and there are no data.
        """
        entry = recipe.stages[number]
        if not isinstance(entry, Prune) or not isinstance(entry.selector, LearnedSelector):
            raise AssertionError(f"stage {number} has no learned selector")
        selector = entry.selector
        token_plan = plan(recipe, self.adapter.facts)
        layers, width = token_plan.encoder_layers, self.adapter.facts.encoder.width
        path = self.directory / (PRUNER if _is_first(recipe, number) else f"pruner-{number}.safetensors")
        shipped = reference_pruner()
        if not self.retrain and fits(shipped, model_digest=self.model_digest, layers=layers, width=width):
            shutil.copyfile(shipped, path)
            shutil.copyfile(log_path(shipped), log_path(path))
            return path
        if self.source is None or selector.training is None:
            raise InputError(f"recipe {recipe.name} leaves a pruner to training; give --data DIR to vtc compress")
        try:
            from vtc.training.trainer import Subject, train_pruner
        except ModuleNotFoundError as error:
            raise MissingDependency(f"training needs {error.name}: pip install 'vtc[compress]'") from None
        config = selector.training
        data = load_examples(self.adapter, self.source, config.images, config.validation, config.seed)
        keep = token_plan.stages[number].tokens_out
        subject = Subject(self.adapter, self.model_digest, layers, keep, selector.diversity)
        train_pruner(subject, data, config, path, self.source, self.report)
        return path


def discard_pruners(directory: Path) -> None:
    """Remove the pruners and logs in a directory."""
    for path in directory.glob("pruner*"):
        path.unlink()


def _is_first(recipe: Recipe, number: int) -> bool:
    return not any(isinstance(getattr(s, "selector", None), LearnedSelector) for s in recipe.stages[:number])

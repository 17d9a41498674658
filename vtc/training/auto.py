"""``checkpoint: auto``: the trained part that ships with the model if it fits, a newly trained one if not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vtc.errors import InputError, MissingDependency
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.progress import Report, silent
from vtc.recipe import (
    LearnedEntry,
    PruneEntry,
    PruneInDecoderEntry,
    PrunerTraining,
    Recipe,
    RelevanceEntry,
    RelevanceTraining,
)
from vtc.reference import reference_pruner, reference_relevance
from vtc.training.checkpoint import fits, log_path, relevance_fits
from vtc.training.examples import Data, load_examples

STEMS = ("pruner", "relevance")
"""What files of trained parts are called, by kind."""


@dataclass(frozen=True)
class _Part:
    """A trained part of a recipe.

    Attributes
    ----------
    stem : str
    shipped : Path
        The reference model's.
    fits : callable
        Whether a file holds one that this recipe and model can use.
    training : PrunerTraining, RelevanceTraining or None
    train : callable
        Given the file to make and what data to make it from.
    """

    stem: str
    shipped: Path
    fits: Callable[[Path], bool]
    training: PrunerTraining | RelevanceTraining | None
    train: Callable[[Path, str], None]


@dataclass(frozen=True)
class AutoPruner:
    """Puts the trained part of a stage, a pruner or a relevance network, into a directory, and says where it is.

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
        part, path = self._part(recipe, number), self.path(recipe, number)
        if not self.retrain and part.fits(part.shipped):
            shutil.copyfile(part.shipped, path)
            shutil.copyfile(log_path(part.shipped), log_path(path))
            return path
        _check_trainable(self.adapter)
        if self.source is None or part.training is None:
            raise InputError(f"recipe {recipe.name} leaves a pruner to training; give --data DIR to vtc compress")
        part.train(path, self.source)
        return path

    def path(self, recipe: Recipe, number: int) -> Path:
        """Where the trained part of stage `number` goes."""
        kind = type(getattr(recipe.stages[number], "selector", None))
        first = not any(isinstance(getattr(stage, "selector", None), kind) for stage in recipe.stages[:number])
        stem = self._part(recipe, number).stem
        return self.directory / f"{stem if first else f'{stem}-{number}'}.safetensors"

    def discard_others(self, recipe: Recipe) -> None:
        """Remove trained parts and logs that an interrupted run with another recipe left in the directory."""
        own = [self.path(recipe, number) for number in left_open(recipe)]
        keep = {*own, *map(log_path, own)}
        for found in [found for stem in STEMS for found in self.directory.glob(f"{stem}*")]:
            if found not in keep:
                found.unlink()

    def _part(self, recipe: Recipe, number: int) -> _Part:
        match recipe.stages[number]:
            case PruneEntry(selector=LearnedEntry() as selector):
                return self._pruner(recipe, number, selector)
            case PruneInDecoderEntry(selector=RelevanceEntry() as selector):
                return self._relevance(recipe, number, selector)
        raise AssertionError(f"stage {number} has no trained selector")

    def _data(self, config: PrunerTraining | RelevanceTraining, source: str) -> Data:
        return load_examples(self.adapter, source, config.images, config.validation, config.seed)

    def _pruner(self, recipe: Recipe, number: int, selector: LearnedEntry) -> _Part:
        token_plan = plan(recipe, self.adapter.facts)
        layers, width = token_plan.encoder_layers, self.adapter.facts.token_width

        def train(path: Path, source: str) -> None:
            with _extra_wanted():
                from vtc.training.trainer import Subject, train_pruner
            config = selector.training or PrunerTraining()
            keep = token_plan.stages[number].tokens_out
            subject = Subject(self.adapter, self.model_digest, layers, keep, selector.diversity)
            train_pruner(subject, self._data(config, source), config, path, source, self.report)

        def suits(path: Path) -> bool:
            return fits(path, model_digest=self.model_digest, layers=layers, width=width)

        return _Part(STEMS[0], reference_pruner(), suits, selector.training, train)

    def _relevance(self, recipe: Recipe, number: int, selector: RelevanceEntry) -> _Part:
        token_plan = plan(recipe, self.adapter.facts)
        (segment,) = (at for at, segment in enumerate(token_plan.segments) if segment.stage == number)
        behind, before = token_plan.around(segment)

        def train(path: Path, source: str) -> None:
            with _extra_wanted():
                from vtc.training.explanations import Subject
                from vtc.training.relevance import train_relevance
            config = selector.training or RelevanceTraining()
            subject = Subject(self.adapter, self.model_digest, behind, before)
            train_relevance(subject, self._data(config, source), config, path, source, self.report)

        def suits(path: Path) -> bool:
            return relevance_fits(path, model_digest=self.model_digest, layer=before)

        return _Part(STEMS[1], reference_relevance(), suits, selector.training, train)


@contextmanager
def _extra_wanted() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependency(f"training needs {error.name}: pip install 'vtc[compress]'") from None


def left_open(recipe: Recipe) -> list[int]:
    """Numbers of the stages whose trained part is left ``auto``."""
    return [int(key.split(".")[1]) for key in recipe.autos if key.endswith(".checkpoint")]


def _check_trainable(adapter: VLMAdapter) -> None:
    """Refuse a model that the training's own forward pass does not follow.

    Raises
    ------
    InputError
    """
    layout, decoder = adapter.facts.layout, adapter.facts.decoder
    plain = layout.whole_views and layout.spans == layout.frames == 1
    if not plain or decoder.position_axes > 1 or decoder.deepstack or decoder.bidirectional != "none" or decoder.window:
        raise InputError(
            f"no selector can be trained for {adapter.facts.model_type} yet: training follows plain causal "
            "attention, one position axis and images of one view; take a recipe whose selector needs no training"
        )

"""Everything that docs/projectors.md shows, measured on the reference VLM: ``python -m docs.studies.projectors``.

Trains each projector with the same steps and questions (kept in ``--work``, so that a second run goes on), answers the
same questions of the test split with each, and writes ``docs/results/projectors.json``, the plot and the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from docs.studies.harness import Answers, Questions
from docs.studies.pages import fill_tables
from docs.studies.plots import plot_projectors
from docs.studies.projector_tables import BUDGETS, ELASTIC, HEADLINES, METHODS, PARTS, TABLES, UNTRAINED
from vtc.data.datasets import FILE_NAME
from vtc.progress import Report, progress
from vtc.projectors.qmop import Qmop
from vtc.recipe import Recipe, RecipeSource
from vtc.reference.scenes import write_question_set
from vtc.training.distillation import train_by_distillation
from vtc.training.job import TrainingJob

DOCS = Path(__file__).resolve().parents[1]
FILE = "projector.safetensors"


@dataclass(frozen=True)
class Study:
    """What all experiments share.

    Attributes
    ----------
    questions : Questions
        Of the test split.
    work : Path
        Where trained projectors go.
    data : Path
        Questions of the training split.
    training : mapping
        The same for all.
    report : callable
    answers : dict
        What has been asked already, by what was asked.
    """

    questions: Questions
    work: Path
    data: Path
    training: Mapping[str, Any]
    report: Report
    answers: dict[str, Answers] = field(default_factory=dict)

    def recipe(self, projector: Mapping[str, Any], keep: int | list[int], **options: Any) -> Recipe:
        """One stage."""
        stage = {"kind": "project", "keep": keep, "projector": {**projector, **options}}
        return Recipe.model_validate({"version": 1, "name": "study", "stages": [stage]})

    def trained(self, projector: Mapping[str, Any], keep: int | list[int]) -> Path:
        """The directory of a projector's file, which is trained unless it has been."""
        words = [str(value) for value in (*projector.values(), *np.atleast_1d(keep), f"seed{self.training['seed']}")]
        directory = self.work / "-".join(words).translate(str.maketrans("", "", "[]()',\" "))
        directory.mkdir(parents=True, exist_ok=True)
        adapter, digest = self.questions.adapter, self.questions.digest
        recipe = self.recipe(projector, keep, training=dict(self.training))
        train_by_distillation(TrainingJob(adapter, digest, recipe, 0, directory / FILE, str(self.data), self.report))
        return directory

    def projected(self, projector: Mapping[str, Any], keep: int, trained: int | list[int] | None = None) -> Recipe:
        """The recipe of a projector at `keep` tokens; `trained` are those that it was trained at."""
        if projector["name"] in UNTRAINED_PROJECTORS:
            return self.recipe(projector, keep)
        directory = self.trained(projector, keep if trained is None else trained)
        recipe = self.recipe(projector, keep, checkpoint=FILE, training=None)
        return recipe.with_source(RecipeSource(directory=directory))

    def ask(self, name: str, recipe: Recipe) -> Answers:
        """Answers with a recipe, asked once."""
        if name not in self.answers:
            self.answers[name] = self.questions.answer(recipe)
        return self.answers[name]


UNTRAINED_PROJECTORS = ("m3",)

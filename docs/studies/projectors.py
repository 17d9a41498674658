"""Everything that docs/projectors.md shows, measured on the reference VLM: ``python -m docs.studies.projectors``.

Trains each projector with the same steps and questions (kept in ``--work``, so that a second run goes on), answers the
same questions of the test split with each, and writes ``docs/results/projectors.json``, the plot and the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from docs.studies.harness import Answers, Questions
from docs.studies.pages import fill_tables
from docs.studies.plots import plot_projectors
from docs.studies.projector_tables import BUDGETS, ELASTIC, HEADLINES, METHODS, TABLES, UNTRAINED
from vtc.data.datasets import FILE_NAME
from vtc.plan import plan
from vtc.progress import Report, progress
from vtc.projectors.qmop import Qmop
from vtc.recipe import Recipe, RecipeSource
from vtc.recipe.projectors.qmop import BRANCHES
from vtc.recipe.stages import ProjectEntry
from vtc.reference import reference_part
from vtc.reference.scenes import write_question_set
from vtc.training.distillation import train_by_distillation
from vtc.training.job import TrainingJob

DOCS = Path(__file__).resolve().parents[1]
FILE = "projector.safetensors"
TRAINING = {"steps": 600, "questions": 11000, "validation": 100, "batch": 16, "learning_rate": 0.003, "seed": 0}
DRAWN = 12000
"""Questions of the training split; those of the images that are validated on are not trained on."""
Budget = int | tuple[int, ...]


def recipe_of(stage: dict[str, Any]) -> Recipe:
    """A recipe of one stage."""
    return Recipe.model_validate({"version": 1, "name": "study", "stages": [stage]})


def project(label: str, keep: Budget, **options: Any) -> Recipe:
    """The recipe of one projector."""
    return recipe_of({"kind": "project", "keep": keep, "projector": {**METHODS[label], **options}})


@dataclass(frozen=True, eq=False)
class Study:
    """What all experiments share.

    Attributes
    ----------
    questions : Questions
        Of the test split.
    work : Path
        Where trained projectors go, and the questions that they are trained on.
    train : bool
        Train what is missing; else leave it out.
    report : callable
    """

    questions: Questions
    work: Path
    train: bool
    report: Report

    def trained(self, label: str, keep: Budget) -> Path | None:
        """The directory of a projector's file; None where there is none."""
        named = label.replace(", ", "-").replace(" + ", "-").replace(" ", "-")
        directory = self.work / f"{named}-{'_'.join(map(str, np.atleast_1d(keep)))}-seed{TRAINING['seed']}"
        if self.train:
            directory.mkdir(parents=True, exist_ok=True)
            steps = TRAINING["steps"] * np.size(keep)  # one for all has as many as those for each together
            recipe = project(label, keep, training={**TRAINING, "steps": steps})
            adapter, data = self.questions.adapter, str(self.data)
            job = TrainingJob(adapter, self.questions.digest, recipe, 0, directory / FILE, data, self.report)
            train_by_distillation(job)
        return directory if (directory / FILE).is_file() else None

    @property
    def data(self) -> Path:
        """Questions of the training split, drawn once."""
        directory = self.work / "data"
        if not (directory / FILE_NAME).is_file():
            write_question_set("train", 0, DRAWN, directory)
        return directory

    def possible(self, label: str, keep: int) -> bool:
        """Whether a projector can make so many tokens."""
        (stage,) = project(label, keep).stages
        assert isinstance(stage, ProjectEntry)
        return keep in stage.projector.keeps(self.questions.grid)

    def recipe(self, label: str, keep: int, trained: Budget | None = None) -> Recipe | None:
        """A trained projector at `keep` tokens; `trained` are those that it was trained for."""
        directory = self.trained(label, trained or keep) if self.possible(label, keep) else None
        if directory is None:
            return None
        return project(label, keep, checkpoint=FILE, training=None).with_source(RecipeSource(directory=directory))

    @cache  # noqa: B019 (a study lives as long as the process)
    def answers(self, label: str, keep: int, trained: Budget | None = None) -> Answers | None:
        """Answers with a projector or a selector."""
        if label in UNTRAINED:
            stage = {"kind": "prune", "keep": keep, "selector": UNTRAINED[label], "positions": "original"}
            recipe = recipe_of(stage).with_source(RecipeSource(directory=reference_part("pruner").parent))
            return self.questions.answer(recipe)
        found = self.recipe(label, keep, trained)
        return None if found is None else self.questions.answer(found)


# Retention ----------------------------------------------------------------------------------------------------------


def budgets(study: Study) -> dict[str, Any]:
    """Retention of everything at each number of tokens, as far as it can make so many."""
    found: dict[str, Any] = {}
    for label in [*METHODS, *UNTRAINED]:
        for keep in BUDGETS:
            if (answers := study.answers(label, keep)) is not None:
                found.setdefault(label, {})[str(keep)] = study.questions.retention(answers)
        print(label, {keep: round(row["retention"], 3) for keep, row in found.get(label, {}).items()}, flush=True)
    found["downsampling"] = {
        str(keep): study.questions.retention(study.questions.baseline("downsample", keep)) for keep in BUDGETS
    }
    return found


def capabilities(study: Study, keep: int) -> dict[str, Any]:
    """Retention by category of question at one number of tokens."""
    rows = {label: study.answers(label, keep) for label in [*METHODS, *UNTRAINED]}
    return {label: study.questions.by_capability(answers) for label, answers in rows.items() if answers is not None}


def elastic(study: Study) -> dict[str, Any]:
    """One model for all numbers of tokens beside one for each."""
    found: dict[str, Any] = {}
    for keep in BUDGETS:
        one, separate = study.answers(ELASTIC, keep, tuple(sorted(BUDGETS))), study.answers(ELASTIC, keep)
        if one is not None and separate is not None:
            rows = {"elastic": study.questions.retention(one), "separate": study.questions.retention(separate)}
            found[str(keep)] = rows | {"difference": study.questions.ahead(one, separate)}
    return found


# QMoP taken apart ---------------------------------------------------------------------------------------------------

Weights = Callable[[Tensor, Tensor], Tensor]


def mixture(study: Study, keep: int) -> dict[str, Any] | None:
    """QMoP beside its own branches trained alone, untrained pooling, and itself with another routing."""
    recipe, routed = study.recipe("qmop", keep), study.answers("qmop", keep)
    if recipe is None or routed is None:
        return None
    questions, telling = study.questions, _Telling()
    model = questions.compressed(recipe)
    (projector,) = (module for module in model.modules() if isinstance(module, Qmop))
    weigh = projector.weights

    def asked(weights: Weights) -> Answers:
        projector.weights = weights  # type: ignore[method-assign, assignment]
        return questions.run([model])

    def constant(*values: float) -> Weights:
        return lambda image, question: torch.tensor(values).expand(image.shape[0], -1)

    rivals = {label: study.answers(label, keep) for label in METHODS if label.startswith("qmop, ")}
    rivals["pooling, untrained"] = study.answers("pooling, untrained", keep)
    again = asked(telling.listening("its own", weigh))
    assert (again.scores == routed.scores).all()
    # A batch's questions move on by one: each image is asked about with the router's mind on another question.
    shuffled: Weights = lambda image, question: weigh(image, question.roll(1, dims=0))  # noqa: E731
    rivals["qmop, the router sees another question"] = asked(telling.listening("another's", shuffled))
    rivals["qmop, equal weights"] = asked(constant(*[1 / len(BRANCHES)] * len(BRANCHES)))
    single = [asked(constant(*row)) for row in np.eye(len(BRANCHES)).tolist()]
    best = Answers(np.max([answers.scores for answers in single], axis=0), [], routed.layer_average)
    rivals["qmop, the best one of its branches for each question"] = best
    rows = {
        label: {**questions.retention(answers), "behind": questions.ahead(routed, answers)}
        for label, answers in rivals.items()
        if answers is not None
    }
    return {"qmop": questions.retention(routed), "rivals": rows, "router": telling.rows()}


class _Telling:
    """Notes what a router gives."""

    def __init__(self) -> None:
        self.given: dict[str, list[Tensor]] = {}

    def listening(self, name: str, weigh: Weights) -> Weights:
        """A router that notes what it gives."""
        noted = self.given.setdefault(name, [])

        def weights(image: Tensor, question: Tensor) -> Tensor:
            found = weigh(image, question)
            noted.append(found)
            return found

        return weights

    def rows(self) -> dict[str, Any]:
        """Of each: mean weights, shares of questions that leave a branch out, mean entropy in bits."""
        return {name: _router(torch.cat(given).double()) for name, given in self.given.items()}


def _router(weights: Tensor) -> dict[str, Any]:
    entropy = -torch.where(weights > 0, weights * weights.clamp(min=1e-30).log2(), 0.0).sum(dim=1)
    columns: Sequence[Tensor] = list(weights.unbind(dim=1))
    return {
        "weight": {name: float(own.mean()) for name, own in zip(BRANCHES, columns, strict=True)},
        "left_out": {name: float((own == 0).double().mean()) for name, own in zip(BRANCHES, columns, strict=True)},
        "entropy": float(entropy.mean()),
    }


# Cost ---------------------------------------------------------------------------------------------------------------


def costs(study: Study) -> dict[str, Any]:
    """Parameters and floating-point operations of each projector, by the plan."""
    facts = study.questions.adapter.facts
    found: dict[str, Any] = {}
    for label in METHODS:
        for keep in BUDGETS:
            if study.possible(label, keep):
                made = plan(project(label, keep), facts)
                row = {"parameters": made.stages[0].parameters, "mflops": made.flops_parts["projector"] / 1e6}
                found.setdefault(label, {})[str(keep)] = row
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=1200, help="questions of the test split, one an image")
    parser.add_argument("--work", type=Path, default=Path("out/studies/projectors"), help="where projectors are kept")
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True, help="train what is missing")
    options = parser.parse_args()
    questions = Questions(options.questions, 0)
    with progress() as report:
        study = Study(questions, options.work, options.train, report)
        results: dict[str, Any] = {
            "questions": options.questions,
            "training": TRAINING,
            "original": float(questions.original.scores.mean()),
            "blind": questions.retention(questions.baseline("blind", 1)),
            "budgets": budgets(study),
            "capabilities": capabilities(study, HEADLINES[-1]),
            "qmop": {str(keep): found for keep in HEADLINES if (found := mixture(study, keep)) is not None},
            "elastic": elastic(study),
            "cost": costs(study),
        }
    (DOCS / "results" / "projectors.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot_projectors(results, DOCS / "figures" / "projectors.png")
    fill_tables(DOCS / "projectors.md", results, TABLES)


if __name__ == "__main__":
    main()

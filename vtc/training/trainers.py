"""How each trained part of a recipe is made: class of its entry to trainer.

Trainers are imported when they are called: they need more than running or exporting does.
"""

from __future__ import annotations

from vtc.errors import InputError
from vtc.facts.model import ModelFacts
from vtc.recipe import Recipe
from vtc.recipe.projectors import PROJECTORS
from vtc.recipe.selectors import LearnedEntry, RelevanceEntry
from vtc.recipe.selectors.decoder.relevance import RelevanceTraining
from vtc.recipe.selectors.learned import PrunerTraining
from vtc.recipe.trained import Trained
from vtc.training.examples import load_examples
from vtc.training.job import Trainer, TrainingJob


def train_learned(job: TrainingJob) -> None:
    """Train a pruner."""
    from vtc.training.pruner import PrunerSubject, train_pruner

    entry, plan = job.entry, job.plan
    config = entry.training or PrunerTraining()
    keep = plan.per_span(plan.stages[job.number].tokens_out)
    subject = PrunerSubject(job.adapter, job.model_digest, plan.encoder_layers, keep, entry.diversity)
    data = load_examples(job.adapter, job.source, config.images, config.validation, config.seed)
    train_pruner(subject, data, config, job.path, job.source, job.report)


def train_relevance(job: TrainingJob) -> None:
    """Train a relevance network."""
    from vtc.training.explanations import RelevanceSubject
    from vtc.training.relevance import train_relevance

    config = job.entry.training or RelevanceTraining()
    after, before = job.plan.around(job.plan.segment_of(job.number))
    subject = RelevanceSubject(job.adapter, job.model_digest, after, before)
    data = load_examples(job.adapter, job.source, config.images, config.validation, config.seed)
    train_relevance(subject, data, config, job.path, job.source, job.report)


def train_projector(job: TrainingJob) -> None:
    """Train a projector."""
    from vtc.training.distillation import train_by_distillation

    train_by_distillation(job)


def check_trainable(recipe: Recipe, facts: ModelFacts) -> None:
    """Refuse a recipe that leaves a part to a training which this model cannot have.

    Raises
    ------
    InputError
    """
    left = [f"stages.{number}" for number, _, entry in recipe.trained() if entry.checkpoint == "auto"]
    if left and facts.layout.frames > 1:
        raise InputError(
            f"recipe {recipe.name} leaves {', '.join(left)} to training, which takes single images, and clips of "
            f"{facts.layout.frames} frames are asked for; train it without --frames and give its file as checkpoint"
        )


TRAINERS: dict[type[Trained], Trainer] = {
    LearnedEntry: train_learned,
    RelevanceEntry: train_relevance,
    **{entry: train_projector for entry in PROJECTORS.values() if issubclass(entry, Trained)},
}

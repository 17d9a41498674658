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

    check_plain(job.adapter.facts)
    entry, plan = job.entry, job.plan
    config = entry.training or PrunerTraining()
    keep = plan.stages[job.number].tokens_out
    subject = PrunerSubject(job.adapter, job.model_digest, plan.encoder_layers, keep, entry.diversity)
    data = load_examples(job.adapter, job.source, config.images, config.validation, config.seed)
    train_pruner(subject, data, config, job.path, job.source, job.report)


def train_relevance(job: TrainingJob) -> None:
    """Train a relevance network."""
    from vtc.training.explanations import RelevanceSubject
    from vtc.training.relevance import train_relevance

    check_plain(job.adapter.facts)
    config = job.entry.training or RelevanceTraining()
    after, before = job.plan.around(job.plan.segment_of(job.number))
    subject = RelevanceSubject(job.adapter, job.model_digest, after, before)
    data = load_examples(job.adapter, job.source, config.images, config.validation, config.seed)
    train_relevance(subject, data, config, job.path, job.source, job.report)


def train_projector(job: TrainingJob) -> None:
    """Train a projector."""
    from vtc.training.distillation import train_by_distillation

    train_by_distillation(job)


def check_plain(facts: ModelFacts) -> None:
    """Refuse a model that the forward pass of these trainers does not follow.

    Raises
    ------
    InputError
    """
    layout, decoder = facts.layout, facts.decoder
    plain = layout.whole_views and layout.spans == layout.frames == 1
    if not plain or decoder.position_axes > 1 or decoder.deepstack or decoder.bidirectional != "none" or decoder.window:
        raise InputError(
            f"no selector can be trained for {facts.model_type} yet: training follows plain causal "
            "attention, one position axis and images of one view; take a recipe whose selector needs no training"
        )


def check_trainable(recipe: Recipe, facts: ModelFacts) -> None:
    """Refuse a recipe that leaves a part to a training which this model cannot have.

    Raises
    ------
    InputError
    """
    if any(entry.checkpoint == "auto" and isinstance(entry, PLAIN) for _, _, entry in recipe.trained()):
        check_plain(facts)


PLAIN = (LearnedEntry, RelevanceEntry)
"""Parts whose training takes plain models alone."""

TRAINERS: dict[type[Trained], Trainer] = {
    LearnedEntry: train_learned,
    RelevanceEntry: train_relevance,
    **{entry: train_projector for entry in PROJECTORS.values() if issubclass(entry, Trained)},
}

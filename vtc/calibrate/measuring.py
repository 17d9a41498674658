"""What a choice can measure: a model with some stages, and how far a stage moves it from the original."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from vtc.calibrate.expert_use import expert_use
from vtc.calibrate.measurements import Measurements
from vtc.compressed.build import apply_recipe
from vtc.compressed.model import CompressedModel
from vtc.data.fidelity import divergence, log_softmax
from vtc.data.samples import ANSWER_TOKENS, Sample
from vtc.experts.statistics import ExpertUse
from vtc.models.base import VLMAdapter
from vtc.progress import Report, silent
from vtc.recipe import NONE, Recipe
from vtc.recipe.stages import StageEntry

BATCH = 16


class Compared(NamedTuple):
    """A model beside the original, mean over the tokens of the original's answers.

    Attributes
    ----------
    divergence : float
        KL divergence, in nats.
    agreement : float
        Share of tokens that both find most likely.
    loss, original_loss : float
        Negative log-likelihood of the answers by each.
    """

    divergence: float
    agreement: float
    loss: float
    original_loss: float


class Measuring:
    """A model, samples to measure it on, and what was measured.

    Parameters
    ----------
    adapter : VLMAdapter
    samples : sequence of Sample
    measurements : Measurements
    model_digest : str
    report : callable
        Told what is measured, how many measurements are done and how many there are.
    """

    def __init__(
        self,
        adapter: VLMAdapter,
        samples: Sequence[Sample],
        measurements: Measurements,
        model_digest: str = "",
        report: Report = silent,
    ) -> None:
        self.adapter = adapter
        self.samples = list(samples)
        self.measurements = measurements
        self.model_digest = model_digest
        self.report = report
        self._experts: dict[str, ExpertUse] = {}

    def model(self, recipe: Recipe) -> CompressedModel:
        """The model with a recipe applied."""
        return apply_recipe(self.adapter, recipe, model_digest=self.model_digest)

    def batches(self) -> Iterable[list[Sample]]:
        """All samples, some at a time."""
        for start in range(0, len(self.samples), BATCH):
            yield self.samples[start : start + BATCH]

    def best(self, words: str, before: Recipe, candidates: dict[int, StageEntry]) -> list[int]:
        """Rank candidates for a stage after those `before` it by how little they move the answers (mean KL divergence).

        Parameters
        ----------
        words : str
            What is calibrated, for the report.
        before : Recipe
            The stages before, resolved.
        candidates : dict of int to StageEntry
            The stage with each value that it may have.

        Returns
        -------
        list of int
            The values, best first; of equal ones the lowest.
        """
        divergences = {}
        for done, (value, candidate) in enumerate(candidates.items()):
            self.report(words, done, len(candidates))
            divergences[value] = self.compared(before, candidate).divergence
        self.report(words, len(candidates), len(candidates))
        return sorted(candidates, key=lambda value: (divergences[value], value))

    def compared(self, before: Recipe, stage: StageEntry) -> Compared:
        """How far a stage, after those `before` it, moves the model; teacher-forced on the original's answers."""
        recipe = before.model_copy(update={"stages": (*before.stages, stage)})

        def measure() -> list[float]:
            model = self.model(recipe)
            parts: dict[str, list[Any]] = {"kld": [], "top": [], "loss": [], "original": []}
            for batch, answers, logits in self._original:
                scores = model.score([s.images for s in batch], [s.prompt for s in batch], answers)
                for ids, reference, candidate in zip(answers, logits, scores, strict=True):
                    compared = divergence(reference, candidate)
                    parts["kld"].append(compared.kld)
                    parts["top"].append(compared.same_top)
                    parts["loss"].append(-log_softmax(candidate)[np.arange(len(ids)), ids])
                    parts["original"].append(-log_softmax(reference)[np.arange(len(ids)), ids])
            return [float(np.concatenate(values).mean()) for values in parts.values()]

        return Compared(*self.measurements.get(f"compared {recipe.digest}", measure))

    def experts(self, recipe: Recipe) -> ExpertUse:
        """Who uses which expert, with a recipe applied."""
        if recipe.digest not in self._experts:
            self._experts[recipe.digest] = expert_use(self.model(recipe), self.samples, self.report)
        return self._experts[recipe.digest]

    @cached_property
    def _original(self) -> list[tuple[list[Sample], list[list[int]], list[Any]]]:
        """Batches of samples with the original's answers and logits."""
        model = self.model(NONE)
        found = []
        for batch in self.batches():
            images, prompts = [s.images for s in batch], [s.prompt for s in batch]
            eos = self.adapter.eos_token_ids[:1]
            answers = [a.token_ids + eos for a in model.generate(images, prompts, ANSWER_TOKENS)]
            found.append((batch, answers, model.score(images, prompts, answers)))
        return found

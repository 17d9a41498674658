"""Answers the same test questions with many recipes: images are encoded once, selection and decoding run for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vtc.compressed.baselines import baseline
from vtc.compressed.build import apply_recipe
from vtc.compressed.model import CompressedModel
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.data.datasets import Item, load_dataset
from vtc.evaluate import stats
from vtc.evaluate.evidence import Locator, item_evidence
from vtc.evaluate.metrics import answer_score
from vtc.facts.layout import Grid
from vtc.models import load_adapter, model_digest
from vtc.models.base import VLMAdapter
from vtc.recipe import NONE, Recipe
from vtc.recipe.needs import NOTHING, Needs, Reading
from vtc.recipe.selectors import RandomEntry
from vtc.reference import reference_dir
from vtc.visual_tokens import TextEmbeddings, in_grids

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

BATCH = 48
RANDOM_DRAWS = 16
MAX_NEW_TOKENS = 6


@dataclass(frozen=True)
class Answers:
    """One method's answers.

    Attributes
    ----------
    scores : array of shape (n,)
        0 or 1 for each question.
    kept : list of arrays of shape (n, K)
        Places kept before the decoder and after each cut inside it; empty where they were not asked for.
    layer_average : float
        Visual tokens, mean over the decoder's layers.
    """

    scores: Floats
    kept: list[Indices]
    layer_average: float


class Questions:
    """Questions of the reference scenes, one an image, with the images' encoded tokens.

    Parameters
    ----------
    count, seed : int
    split : {"test", "train"}
    model : Path or None
        The checkpoint that answers; None is the reference VLM.
    """

    def __init__(self, count: int, seed: int, split: Any = "test", model: Path | None = None) -> None:
        self.adapter: VLMAdapter = load_adapter(model or reference_dir())
        self.digest = model_digest(self.adapter.path)
        assert self.adapter.facts.grid is not None
        self.grid: Grid = self.adapter.facts.grid
        self.items: Sequence[Item] = load_dataset("reference", count, seed, split).items
        self.prompts = [self.adapter.chat(item.question) for item in self.items]
        self.images = [item.image_id for item in self.items]
        self.layers = range(self.adapter.facts.encoder.feature_layer + 1)
        self.readings: dict[Reading, Tensor] = {}
        self.features = self._note(Needs(frozenset(Reading("cls_attention", layer) for layer in self.layers)))
        self.original = self.answer(NONE)

    def _note(self, needs: Needs) -> Tensor:
        """Encode all images; take readings on the way, return the features."""
        encoder = VisionEncoder(self.adapter, self.layers, needs=needs)
        with torch.inference_mode():
            encoded = [encoder.tokens(self.pixels(batch)) for batch in self._batches()]
        for reading in needs.readings:
            self.readings[reading] = torch.cat([tokens.readings[reading] for tokens in encoded])
        return torch.cat([tokens.features for tokens in encoded])

    def pixels(self, rows: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) of some questions' images."""
        return self.adapter.preprocess([self.items[row].load() for row in rows.flatten().tolist()])

    def _batches(self, limit: int | None = None) -> list[Tensor]:
        return in_batches(min(len(self.items), limit or len(self.items)), BATCH)

    # Answering --------------------------------------------------------------------------------------------------

    def compressed(self, recipe: Recipe) -> CompressedModel:
        """A recipe's model that takes numbers of questions, (B, 1), in place of pixels."""
        model = apply_recipe(self.adapter, recipe, model_digest=self.digest)
        missing = model.vision.needs.readings - set(self.readings)
        if missing:
            self._note(Needs(frozenset(missing)))
        model.vision = _Encoded(self, model.vision)
        return model

    def answer(self, recipe: Recipe, limit: int | None = None, kept: bool = False) -> Answers:
        """Answer the first `limit` questions with a recipe; random selectors take turns with several draws."""
        if any(isinstance(getattr(stage, "selector", None), RandomEntry) for stage in recipe.stages):
            return self.run([self.compressed(_with_seed(recipe, seed)) for seed in range(RANDOM_DRAWS)], limit, kept)
        return self.run([self.compressed(recipe)], limit, kept)

    def baseline(self, name: Any, keep: int, limit: int | None = None) -> Answers:
        """Answer with a baseline that has no recipe: ``downsample`` or ``blind``."""
        model = baseline(self.adapter, name, keep)
        if name == "downsample":
            model.vision = _FromPixels(self, model.vision)
        return self.run([model], limit, average=float(model.image_tokens))

    @torch.inference_mode()
    def run(
        self,
        models: Sequence[CompressedModel],
        limit: int | None = None,
        with_kept: bool = False,
        average: float | None = None,
    ) -> Answers:
        """Answer with models that take turns, a batch each; `with_kept` also notes which tokens were kept."""
        scores: list[float] = []
        kept: list[list[Indices]] = []
        for turn, rows in enumerate(self._batches(limit)):
            model = models[turn % len(models)]
            prompts = [self.prompts[row] for row in rows.flatten().tolist()]
            ids, mask = self.adapter.tokenize(prompts, [1] * len(prompts), model.image_tokens)
            texts = [answer.text for answer in model.answer(ids, mask, rows, MAX_NEW_TOKENS)]
            items = [self.items[row] for row in rows.flatten().tolist()]
            scores += [answer_score(text, item.answers) for text, item in zip(texts, items, strict=True)]
            if with_kept:
                kept.append([indices.numpy() for indices in model.prefill(ids, mask, rows)[1].kept])
        places = [np.concatenate(part) for part in zip(*kept, strict=True)]
        return Answers(np.array(scores), places, models[0].plan.layer_average if average is None else average)

    # Figures ----------------------------------------------------------------------------------------------------

    def retention(self, answers: Answers) -> dict[str, Any]:
        """Accuracy, and retention with its paired 95 % interval."""
        count = len(answers.scores)
        original = self.original.scores[:count]
        interval = stats.ratio_interval(answers.scores, original, self.images[:count], seed=0)
        return {
            "questions": count,
            "accuracy": float(answers.scores.mean()),
            "retention": float(answers.scores.sum() / original.sum()),
            "ci95": list(interval or ()),
            "layer_average": answers.layer_average,
        }

    def ahead(self, answers: Answers, rival: Answers) -> dict[str, Any]:
        """Difference of accuracy and its paired 95 % interval."""
        difference = answers.scores - rival.scores
        return {
            "difference": float(difference.mean()),
            "ci95": list(stats.mean_interval(difference, self.images[: len(difference)], seed=0) or ()),
        }

    def by_capability(self, answers: Answers) -> dict[str, float]:
        """Retention for each category of question."""
        categories = np.array([item.category for item in self.items])
        return {
            name: float(answers.scores[categories == name].sum() / self.original.scores[categories == name].sum())
            for name in dict.fromkeys(categories.tolist())
        }

    def evidence(self, kept: Indices) -> dict[str, float]:
        """Mean share of the evidence's patches that is kept, and share of questions that keep some of each box."""
        facts = self.adapter.facts
        locator = Locator(lambda _, __: kept, self.grid, facts.image_size)
        found = []
        for item, places in zip(self.items, kept, strict=True):
            if item.evidence:
                there = np.zeros(facts.visual_tokens, dtype=np.bool_)
                there[places] = True
                found.append(item_evidence(item, there, locator))
        shares, seen = zip(*found, strict=True)
        return {"recall": float(np.mean(shares)), "seen": float(np.mean(seen))}


def in_batches(count: int, size: int) -> list[Tensor]:
    """Numbers of questions, (B, 1) each."""
    return list(torch.split(torch.arange(count)[:, None], size))


class _Encoded(nn.Module):
    """Stands in for the vision encoder: looks encoded tokens up by number, then runs the recipe's stages."""

    def __init__(self, questions: Questions, vision: VisionEncoder) -> None:
        super().__init__()
        self.questions = questions
        self.vision = vision
        self.needs = vision.needs

    def forward(self, rows: Tensor, text: TextEmbeddings | None = None) -> tuple[Tensor, ...]:
        chosen = rows[:, 0]
        readings = {reading: self.questions.readings[reading][chosen] for reading in self.needs.readings}
        tokens = in_grids(self.questions.features[chosen], self.questions.adapter.facts.layout.grids, readings=readings)
        return self.vision.compress(replace(tokens, text=text))


class _FromPixels(nn.Module):
    """Encodes images anew, for baselines that change them."""

    def __init__(self, questions: Questions, vision: nn.Module) -> None:
        super().__init__()
        self.questions = questions
        self.vision = vision
        self.needs = NOTHING

    def forward(self, rows: Tensor, text: TextEmbeddings | None = None) -> Any:
        return self.vision(self.questions.pixels(rows))


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    data = recipe.canonical()
    for stage in data["stages"]:
        if stage.get("selector", {}).get("name") == "random":
            stage["selector"]["seed"] = seed
    return Recipe.model_validate(data)

"""Models whose accuracy is known because it was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.data.datasets import Dataset, Item
from vtc.evaluate.answers import Contestant
from vtc.inputs.generation import GenerationRules

VOCABULARY = 12


@dataclass(frozen=True)
class FakeGeneration:
    token_ids: list[int]
    text: str


@dataclass
class FakePredictor:
    """Gives `answers[prompt]`; logits favour token 3 by `sharpness`, or token 4 for prompts in `astray`."""

    answers: Mapping[str, str]
    image_tokens: int = 16
    sharpness: float = 4.0
    astray: frozenset[str] = frozenset()
    vocabulary: int = VOCABULARY
    batches: list[int] = field(default_factory=list)
    generation_rules: GenerationRules = field(default_factory=GenerationRules)

    def generate(
        self, images: list[list[Image.Image]], prompts: list[str], max_new_tokens: int = 32
    ) -> list[FakeGeneration]:
        self.batches.append(len(prompts))
        return [FakeGeneration([3] * min(2, max_new_tokens), self.answers[prompt]) for prompt in prompts]

    def score(
        self, images: list[list[Image.Image]], prompts: list[str], continuations: list[list[int]]
    ) -> list[NDArray[np.float32]]:
        rows = []
        for prompt, ids in zip(prompts, continuations, strict=True):
            logits = np.zeros((len(ids), self.vocabulary), np.float32)
            logits[:, 4 if prompt in self.astray else 3] = self.sharpness
            rows.append(logits)
        return rows


def dataset(count: int, categories: int = 2, per_image: int = 1) -> Dataset:
    """`count` questions "q0", "q1", ... whose right answers are "a0", "a1", ..."""
    picture = Image.new("RGB", (8, 8))
    return Dataset(
        "fake",
        tuple(
            Item(
                f"id{n}",
                picture,
                f"image{n // per_image}",
                f"q{n}",
                (f"a{n}",),
                f"capability{n % categories}",
                chance=0.5,
            )
            for n in range(count)
        ),
    )


def contestant(name: str, data: Dataset, wrong: set[int] = frozenset(), **options: object) -> Contestant:  # type: ignore[assignment]
    """A model that answers everything right but the items whose numbers are in `wrong`."""
    answers = {
        f"<image>{item.question}": "wrong" if number in wrong else item.answers[0]
        for number, item in enumerate(data.items)
    }
    return Contestant(name, FakePredictor(answers, **options), lambda question: f"<image>{question}")  # type: ignore[arg-type]

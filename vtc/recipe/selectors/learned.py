"""Learned in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vtc.facts.model import ModelFacts
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product
from vtc.recipe.trained import Trained
from vtc.recipe.values import Multiple, Weight, Written


class PrunerTraining(Written):
    """How a learned selector is trained: ``steps`` of ``batch`` images each, out of ``images``.

    Before that, ``imitation_steps`` teach it the attention of the encoder's CLS token, where there is one; they take
    seconds, and training goes on from there.

    Every step draws how many tokens are kept, log-uniformly between ``budgets`` times the stage's own number, so that
    one pruner serves them all (``straight_through`` cannot aim at a number: it always has the stage's own). Of the
    tokens that are not kept, ``dropped`` random ones take part in a step and can win their place; 0 means all. Features
    of up to ``memory_gb`` are computed only once.
    """

    steps: Annotated[int, Field(ge=1)] = 1000
    imitation_steps: Annotated[int, Field(ge=0)] = 400
    images: Annotated[int, Field(ge=1)] = 2000
    validation: Annotated[int, Field(ge=1)] = 100
    batch: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    mask: Literal["top_k", "straight_through"] = "top_k"
    lm_weight: Weight = 1.0
    kl_weight: Weight = 1.0
    budget_weight: Weight = 2.0
    budgets: Annotated[tuple[Multiple, Multiple], Field(strict=False)] = (0.5, 4.0)
    dropped: Annotated[int, Field(ge=0)] = 64
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    memory_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> PrunerTraining:
        if self.lm_weight == 0 and self.kl_weight == 0:
            raise ValueError("lm_weight and kl_weight are both 0, there is nothing to learn from")
        if self.budgets[0] > self.budgets[1]:
            raise ValueError(f"budgets is the smaller and the larger multiple, not {list(self.budgets)}")
        return self


class LearnedEntry(EncoderSelectorEntry, Trained):
    """A trained per-token scorer.

    ``checkpoint`` is a safetensors file beside the recipe; ``auto`` takes the one that ships with the model, if there
    is one, and trains one as ``training`` says, if there is none. ``diversity`` is the share of the budget given to
    tokens that resemble the chosen ones least.

    Based on LearnPruner (arXiv 2604.23950).
    """

    summary = "highest score of a trained per-token MLP"
    paper = "LearnPruner (arXiv 2604.23950)"
    reads = "the encoder's hidden states and a trained checkpoint"
    reads_encoder_grid = True
    stem = "pruner"
    name: Literal["learned"] = "learned"
    diversity: float = Field(default=0.1, ge=0, lt=1, allow_inf_nan=False)
    training: PrunerTraining | None = None

    def described(self, layers: Sequence[int]) -> str:
        return f"learned, {self.checkpoint}"

    def parameters(self, facts: ModelFacts) -> int:
        width = facts.token_width
        return (width + 1) * (width // 2) + (width // 2 + 1) * 2

    def products(self, choice: Choice) -> Iterable[Product]:
        tokens, width = choice.tokens, choice.facts.token_width
        return (tokens, width, width // 2), (tokens, width // 2, 2)

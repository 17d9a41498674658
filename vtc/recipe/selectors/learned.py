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
    """How a learned selector is trained: by imitation of CLS attention first, then through the frozen decoder."""

    steps: Annotated[int, Field(ge=1)] = 1000
    """Number of steps."""
    imitation_steps: Annotated[int, Field(ge=0)] = 400
    """Steps before those that teach it the attention of the encoder's CLS token, where there is one; they take
    seconds."""
    images: Annotated[int, Field(ge=1)] = 2000
    """Number of images to learn from."""
    validation: Annotated[int, Field(ge=1)] = 100
    """Number of other images that it is checked on."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Images of one step."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    """Learning rate."""
    mask: Literal["top_k", "straight_through"] = "top_k"
    """How tokens are chosen in training: ``top_k`` keeps an exact number with a soft gradient; ``straight_through``,
    the paper's, cannot hit an exact number; it aims at the stage's own, whatever ``budgets`` says."""
    lm_weight: Weight = 1.0
    """Weight of the answers' cross-entropy."""
    kl_weight: Weight = 1.0
    """Weight of the KL divergence to the unpruned model."""
    budget_weight: Weight = 2.0
    """Weight of the budget's loss, with ``mask: straight_through``."""
    budgets: Annotated[tuple[Multiple, Multiple], Field(strict=False)] = (0.5, 4.0)
    """Every step draws how many tokens are kept, log-uniformly between these multiples of the stage's own number, so
    that one pruner serves them all."""
    dropped: Annotated[int, Field(ge=0)] = 64
    """Random tokens of those not kept that take part in a step and can win their place; 0 means all."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Draws images, budgets and first weights."""
    memory_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0
    """Features of up to so many gigabytes are computed only once."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> PrunerTraining:
        if self.lm_weight == 0 and self.kl_weight == 0:
            raise ValueError("lm_weight and kl_weight are both 0, there is nothing to learn from")
        if self.budgets[0] > self.budgets[1]:
            raise ValueError(f"budgets is the smaller and the larger multiple, not {list(self.budgets)}")
        return self


class LearnedEntry(EncoderSelectorEntry, Trained):
    """The tokens that a small trained network rates highest, token by token.

    Based on LearnPruner (arXiv 2604.23950).
    """

    summary = "highest score of a trained per-token MLP"
    paper = "LearnPruner (arXiv 2604.23950)"
    reads = "the encoder's hidden states and a trained checkpoint"
    reads_encoder_grid = True
    stem = "pruner"
    name: Literal["learned"] = "learned"
    diversity: float = Field(default=0.1, ge=0, lt=1, allow_inf_nan=False)
    """Share of the budget given to tokens that resemble the chosen ones least."""
    training: PrunerTraining | None = None
    """How it is trained; goes with ``checkpoint: auto``."""

    def described(self, layers: Sequence[int]) -> str:
        return f"learned, {self.checkpoint}"

    def parameters(self, facts: ModelFacts) -> int:
        width = facts.token_width
        return (width + 1) * (width // 2) + (width // 2 + 1) * 2

    def products(self, choice: Choice) -> Iterable[Product]:
        tokens, width = choice.tokens, choice.facts.token_width
        return (tokens, width, width // 2), (tokens, width // 2, 2)

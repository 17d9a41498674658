"""Relevance in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from vtc.recipe.selectors.base import DecoderSelectorEntry
from vtc.recipe.trained import Trained
from vtc.recipe.values import Written

CHANNELS = (1, 32, 64, 128, 256, 512)
"""Channels of the network, layer by layer."""
KERNEL = 5
"""Tokens that a convolution spans."""


class RelevanceTraining(Written):
    """How a relevance network is trained.

    Each question is explained once, by gradients through the whole decoder; the network itself is small.
    """

    images: Annotated[int, Field(ge=1)] = 1000
    """Number of images to learn from."""
    questions: Annotated[int, Field(ge=1)] = 2
    """Most questions about each image."""
    validation: Annotated[int, Field(ge=1)] = 100
    """Number of other images that it is checked on."""
    epochs: Annotated[int, Field(ge=1)] = 100
    """Passes over the questions."""
    batch: Annotated[int, Field(ge=1)] = 128
    """Questions of one step."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    """Learning rate."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Draws images, questions and first weights."""


class RelevanceEntry(DecoderSelectorEntry, Trained):
    """What a small network, taught by explanations of the whole model, reads off the attention of a shallow layer.

    It reads the decoder layer before the cut.

    Based on Lei et al. 2025 (arXiv 2506.01097), who cut before the first layer.
    """

    summary = "relevance that a trained network reads off the text's attention"
    paper = "Explainability-based compression (arXiv 2506.01097)"
    reads = "queries and keys of the decoder layer before the cut and a trained checkpoint"
    reads_before = True
    stem = "relevance"
    name: Literal["relevance"] = "relevance"
    training: RelevanceTraining | None = None
    """How it is trained; goes with ``checkpoint: auto``."""

    @property
    def described(self) -> str:
        return f"relevance, {self.checkpoint}"

    def parameters(self) -> int:
        convolutions = sum((KERNEL + 1) * inputs + (inputs + 1) * outputs for inputs, outputs in pairwise(CHANNELS))
        return convolutions + CHANNELS[-1] + 1

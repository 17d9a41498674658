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
    """How a relevance network is trained: ``epochs`` over at most ``questions`` about each of ``images`` images.

    Each question is explained once, by gradients through the whole decoder; the network itself is small. It is checked
    on as many questions about each of ``validation`` other images.
    """

    images: Annotated[int, Field(ge=1)] = 1000
    questions: Annotated[int, Field(ge=1)] = 2
    validation: Annotated[int, Field(ge=1)] = 100
    epochs: Annotated[int, Field(ge=1)] = 100
    batch: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class RelevanceEntry(DecoderSelectorEntry, Trained):
    """What a small network, taught by explanations of the whole model, reads off the attention of a shallow layer.

    It reads the decoder layer before the cut. ``checkpoint`` is a safetensors file beside the recipe; ``auto``
    takes the one that ships with the model, if there is one, and trains one as ``training`` says, if there is none.

    Based on Lei et al. 2025 (arXiv 2506.01097), who cut before the first layer.
    """

    summary = "relevance that a trained network reads off the text's attention"
    paper = "Explainability-based compression (arXiv 2506.01097)"
    reads = "queries and keys of the decoder layer before the cut and a trained checkpoint"
    reads_before = True
    stem = "relevance"
    name: Literal["relevance"] = "relevance"
    training: RelevanceTraining | None = None

    @property
    def described(self) -> str:
        return f"relevance, {self.checkpoint}"

    def parameters(self) -> int:
        convolutions = sum((KERNEL + 1) * inputs + (inputs + 1) * outputs for inputs, outputs in pairwise(CHANNELS))
        return convolutions + CHANNELS[-1] + 1

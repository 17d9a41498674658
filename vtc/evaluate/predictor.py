"""What evaluation needs of a model: bundles, compressed models, originals and baselines all have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.inputs.generation import GenerationRules

Logits = NDArray[np.float32]


class Generated(Protocol):
    """One greedy answer."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Generated token ids."""

    @property
    def text(self) -> str:
        """The same, decoded, without special tokens."""


class Predictor(Protocol):
    """A model that answers questions about images, in batches."""

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one image that enter the decoder."""

    @property
    def generation_rules(self) -> GenerationRules:
        """What the checkpoint's settings ask of answers, which this model follows."""

    def generate(
        self, images: list[list[Image.Image]], prompts: list[str], max_new_tokens: int = 32
    ) -> Sequence[Generated]:
        """Answer B prompts greedily; ``images[b]`` are the images of ``prompts[b]``."""

    def score(
        self, images: list[list[Image.Image]], prompts: list[str], continuations: list[list[int]]
    ) -> Sequence[Logits]:
        """Next-token logits (T, vocabulary) before each of a given continuation's T tokens, for B prompts."""

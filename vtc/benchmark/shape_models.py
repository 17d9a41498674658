"""Models of a shape, with random weights: the original and a compressed one, and a question for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.errors import InputError

if TYPE_CHECKING:
    from vtc.benchmark.timing import BenchPrompt
    from vtc.compressed.model import CompressedModel
    from vtc.models.base import VLMAdapter
    from vtc.models.random.shapes import Shape
    from vtc.recipe import Recipe

WORD = "what"
"""What prompts are made of."""


@dataclass(frozen=True)
class ShapeModels:
    """A model of a shape, as it is and with recipes applied; all share its weights.

    Attributes
    ----------
    adapter : VLMAdapter
    models : list of CompressedModel
        One for each recipe.
    """

    adapter: VLMAdapter
    models: list[CompressedModel]


def random_models(shape: Shape, recipes: Sequence[Recipe], directory: Path, dtype: Any, device: str) -> ShapeModels:
    """Build a model of a shape with random weights, on the device itself.

    Parameters
    ----------
    shape : Shape
    recipes : sequence of Recipe
    directory : Path
        An empty one for configuration, tokenizer and processor.
    dtype : torch.dtype
    device : str
    """
    from vtc.compressed.build import apply_recipe
    from vtc.models.random.weights import random_adapter, randomise

    adapter = random_adapter(shape, directory, dtype=dtype, device=device)
    models = [apply_recipe(adapter, recipe, from_state=True) for recipe in recipes]
    for model in models:
        randomise(model.trained)  # trained selectors, untrained
    return ShapeModels(adapter, models)


def question_about(shape: Shape, adapter: VLMAdapter, text_tokens: int) -> BenchPrompt:
    """A question whose prompt has as many text tokens as were asked for, about images of noise.

    Raises
    ------
    InputError
        If that is less than a prompt has around its question.
    """
    import numpy as np
    from PIL import Image

    from vtc.benchmark.timing import BenchPrompt

    images = shape.images

    def count(text: str) -> int:
        ids, _ = adapter.tokenize([adapter.chat(text, images)], [images], 1)
        return int((ids != adapter.image_token_id).sum())

    least = count(WORD)
    if text_tokens < least:
        raise InputError(f"--text-tokens {text_tokens}: the prompt around a question of one word has {least}")
    text = " ".join([WORD] * (1 + text_tokens - least))
    if count(text) != text_tokens:
        raise AssertionError("a word more is a token more")
    side = shape.tower.image_size
    noise = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    return BenchPrompt(tuple(Image.fromarray(image) for image in noise), text)

"""A picture of the visual tokens that a model keeps of an image, step by step, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.errors import InputError
from vtc.evaluate.contestants import Opened
from vtc.evaluate.picture import Panel, draw, seen_by_model
from vtc.inputs.pixels import to_pixels


@dataclass(frozen=True)
class KeptTokens:
    """What a model keeps of an image.

    Attributes
    ----------
    picture : PIL image
        A panel for each step.
    captions : list of str
        Of each step, where it is and how many tokens go on.
    answer : str
    """

    picture: Image.Image
    captions: list[str]
    answer: str


def draw_kept_tokens(opened: Opened, image: Image.Image, question: str) -> KeptTokens:
    """Ask a model about an image, and draw which visual tokens enter its decoder and go on after each cut inside it.

    Parameters
    ----------
    opened : Opened
        A compressed model or a bundle.
    image : PIL image
    question : str

    Returns
    -------
    KeptTokens

    Raises
    ------
    InputError
        If its tokens are not places on one grid.
    """
    contestant, plan = opened.contestant, opened.plan
    predictor: Any = contestant.predictor
    if contestant.locator is None or plan is None:
        problem = "chooses no places in the image, so there are none to show"
        if plan is not None and plan.chooses_places:
            problem = "chooses among several views or layouts of an image, and only one grid of tokens can be drawn"
        raise InputError(f"{contestant.name}: {problem}")
    asked = [[image]], [contestant.chat(question)]
    steps = ["into the decoder", *(f"from decoder layer {layer} on" for layer in plan.cut_layers)]
    kept = predictor.kept(*asked)
    captions = [f"{step}: {places.shape[1]}" for step, places in zip(steps, kept, strict=True)]
    panels = [Panel(f"as the model sees it: {plan.visual_tokens_in} tokens")]
    panels += [Panel(caption, places[0]) for caption, places in zip(captions, kept, strict=True)]
    answer = predictor.generate(*asked)[0].text
    title = f"{contestant.name}, {contestant.layer_average:.3g} tokens on average   |   {question}   {answer}"
    pixels = seen_by_model(_preprocess(predictor), image)
    return KeptTokens(draw(pixels, contestant.locator.grid, panels, title), captions, answer)


def _preprocess(predictor: Any) -> Callable[[list[Image.Image]], NDArray[np.float32]]:
    """Return what makes pixels (n, 3, H, W) of images for a bundle or a model in PyTorch; not rows of patches."""
    spec = predictor.manifest.images[0].pixels if hasattr(predictor, "manifest") else predictor.adapter.pixels
    return partial(to_pixels, replace(spec, patches=None))

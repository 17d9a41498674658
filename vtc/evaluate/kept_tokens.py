"""A picture of the visual tokens that a model keeps of an image, step by step, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

from PIL import Image

from vtc.errors import InputError
from vtc.evaluate.contestants import Opened
from vtc.evaluate.picture import Panel, draw, seen_by_model
from vtc.facts.layout import Grid
from vtc.inputs.pixels import PixelSpec, to_pixels
from vtc.plan.stored import recipe_of

MERGED = " merged tokens, framed where each stands; they hold of the others too"
"""Of a step whose tokens are not what they were: a frame is one place of what a token is made of."""


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
        If its tokens are not places on one grid. Of several layouts of a bundle, the image's own counts.
    """
    contestant, plan = opened.contestant, opened.plan
    predictor: Any = contestant.predictor
    if plan is None or not plan.chooses_places:
        raise InputError(f"{contestant.name}: chooses no places in the image, so there are none to show")
    spec, grid = _layout(predictor, image)
    if grid is None:
        raise InputError(
            f"{contestant.name}: chooses among several views of an image, and only one grid of tokens can be drawn"
        )
    asked = [[image]], [contestant.chat(question)]
    steps = ["into the decoder", *(f"from decoder layer {layer} on" for layer in plan.cut_layers)]
    kept = predictor.kept(*asked)
    captions = [
        f"{step}: {places.shape[1]}{MERGED if merged else ''}"
        for step, places, merged in zip(steps, kept, _merged(predictor, len(steps)), strict=True)
    ]
    panels = [Panel(f"as the model sees it: {prod(grid)} tokens")]
    panels += [Panel(caption, places[0]) for caption, places in zip(captions, kept, strict=True)]
    answer = predictor.generate(*asked)[0].text
    title = f"{contestant.name}, {contestant.layer_average:.3g} tokens on average   |   {question}   {answer}"
    pixels = seen_by_model(partial(to_pixels, replace(spec, patches=None)), image)
    return KeptTokens(draw(pixels, grid, panels, title), captions, answer)


def _layout(predictor: Any, image: Image.Image) -> tuple[PixelSpec, Grid | None]:
    """How a bundle or a model in PyTorch sees an image, and its grid of tokens; None where there are several."""
    if hasattr(predictor, "manifest"):
        served = predictor.serve([[image]])
        return served.pixels, served.grids[0] if len(served.grids) == served.spans == 1 else None
    facts = predictor.adapter.facts
    return predictor.adapter.pixels, facts.grid if facts.layout.spans == 1 else None


def _merged(predictor: Any, steps: int) -> list[bool]:
    """Whether the tokens of each step hold something of others: a selector before it merges."""
    if hasattr(predictor, "manifest"):
        stages = recipe_of(predictor.manifest).stages
        selecting = [stage for stage in stages if hasattr(stage, "selector")]
        merges = [
            [stage.selector.merges for stage in selecting if (stage.cut_before is None) == first]
            for first in (True, False)
        ]
    else:
        merges = [
            [module.selector.entry.merges for module in part if hasattr(module, "selector")]
            for part in (getattr(predictor.vision, "stages", ()), predictor.handoffs)
        ]
    before = any(merges[0])
    return [before or any(merges[1][:step]) for step in range(steps)]

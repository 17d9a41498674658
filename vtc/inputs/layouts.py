"""Which of a model's layouts of images a prompt takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from vtc.facts.layout import Grid, ImageLayout
from vtc.inputs.prompts import check_several


@dataclass(frozen=True)
class Offer:
    """What a layout is for.

    Attributes
    ----------
    size : (int, int)
        Rows and columns of pixels of the images that it is made for.
    frames : int
        Images that make one clip; 1 where images are no frames.
    alone, several : bool
        Whether the family's own processor makes this of an image that is alone in its prompt, and of each of several.
    """

    size: Grid
    frames: int = 1
    alone: bool = True
    several: bool = True


def offer_of(layout: ImageLayout) -> Offer:
    """What a layout of a model in PyTorch is for."""
    return Offer(layout.image_size, layout.frames, layout.alone, layout.several)


def layouts_of(images: Sequence[Sequence[Image.Image]], offers: Sequence[Offer]) -> list[int]:
    """Number of each prompt's layout.

    Of those that are for so many images, it is the one nearest to the first image in shape, then in size; the first
    one for a prompt without an image. Where none is for an image alone, one takes those of several.

    Parameters
    ----------
    images : for each prompt, its images
    offers : sequence of Offer
        One for each layout, the default one's first.

    Raises
    ------
    InputError
        If a prompt has several images and no layout is for those.
    """
    return [_layout_of(group, offers) if group else 0 for group in images]


def _layout_of(group: Sequence[Image.Image], offers: Sequence[Offer]) -> int:
    inputs = len(group) // offers[0].frames
    fitting = [number for number, offer in enumerate(offers) if (offer.several if inputs > 1 else offer.alone)]
    check_several(inputs, several=bool(fitting))
    first = group[0]

    def distance(number: int) -> tuple[float, float]:
        height, width = offers[number].size
        shape = abs(math.log(height * first.width / (width * first.height)))
        return round(shape, 6), abs(math.log(height * width / (first.width * first.height)))

    return min(fitting or range(len(offers)), key=distance)

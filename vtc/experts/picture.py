"""Heat maps of expert statistics: numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtc.experts.specialisation import visual_share
from vtc.experts.statistics import TEXT, VISUAL, ExpertUse, Floats

CELL, GAP, LEFT, TOP = 22, 26, 46, 52
INK, PAPER = (30, 30, 30), (255, 255, 255)
TEXT_COLOR, VISUAL_COLOR = np.array([38, 98, 196]), np.array([226, 100, 20])


class Map(NamedTuple):
    """A heat map: its title, and colours (L, E, 3) from 0 to 255."""

    title: str
    colors: Floats


def draw_experts(use: ExpertUse) -> Image.Image:
    """Load of each expert by text and by visual tokens, and whose it is: layers in rows, experts in columns.

    Parameters
    ----------
    use : ExpertUse

    Returns
    -------
    PIL image
    """
    maps = [
        Map("load by text", _load(use.chosen[:, TEXT], TEXT_COLOR)),
        Map("load by visual tokens", _load(use.chosen[:, VISUAL], VISUAL_COLOR)),
        Map("blue text, orange visual", _whose(use)),
    ]
    return _sheet(maps, use.layers, use.experts)


def _load(chosen: Floats, color: Floats) -> Floats:
    """White for an expert that nobody chose, full colour for the layer's busiest."""
    share = chosen / np.maximum(chosen.max(axis=1, keepdims=True), 1e-12)
    return np.asarray(255 + share[..., None] * (color - 255))


def _whose(use: ExpertUse) -> Floats:
    """From text's colour through white to visual tokens' colour, modalities counted alike."""
    share = visual_share(use.chosen, equal_mass=True)[..., None]
    toward = np.where(share < 0.5, TEXT_COLOR, VISUAL_COLOR)
    return np.asarray(255 + np.abs(2 * share - 1) * (toward - 255))


def _sheet(maps: Sequence[Map], layers: int, experts: int) -> Image.Image:
    font = ImageFont.load_default(size=14)
    cell = max(4, min(CELL, 900 // experts))
    width = max(experts * cell, *(round(font.getlength(one.title)) for one in maps))
    size = (LEFT + len(maps) * (width + GAP), TOP + layers * cell + GAP)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((8, TOP - 20), "layer", INK, font)
    for layer in range(0, layers, 1 if cell >= 14 else 8):
        pen.text((LEFT - 24, TOP + layer * cell + max(0, (cell - 16) // 2)), str(layer), INK, font)
    for number, one in enumerate(maps):
        left = LEFT + number * (width + GAP)
        pen.text((left, 8), one.title, INK, font)
        pen.text((left, TOP - 20), f"expert 0 to {experts - 1}", INK, font)
        small = Image.fromarray(np.clip(np.rint(one.colors), 0, 255).astype(np.uint8))
        sheet.paste(small.resize((experts * cell, layers * cell), Image.Resampling.NEAREST), (left, TOP))
        pen.rectangle((left, TOP, left + experts * cell - 1, TOP + layers * cell - 1), outline=INK)
    return sheet

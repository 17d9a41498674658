"""Pictures of the visual tokens that a compressed model keeps: numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PANEL = 384
MARGIN = 12
LINE = 22
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
BACKGROUND, INK, FRAME = (255, 255, 255), (30, 30, 30), (230, 60, 20)
CONTRAST = 0.25
"""What is left of the contrast of a token that is gone."""


@dataclass(frozen=True)
class Panel:
    """One step: what it is, and the places on the grid that are kept, ascending; None shows the whole image."""

    caption: str
    kept: NDArray[np.int64] | None = None


def seen_by_model(
    preprocess: Callable[[list[Image.Image]], NDArray[np.float32]], image: Image.Image
) -> NDArray[np.uint8]:
    """An image resized and cropped as the model sees it, (H, W, 3).

    Parameters
    ----------
    preprocess : callable
        From images to normalised pixels (n, 3, H, W); black and white undo the normalisation.
    image : PIL image
    """
    shades = [Image.new("RGB", image.size, (level,) * 3) for level in (0, 255)]
    pixels, black, white = (preprocess([one])[0] for one in (image, *shades))
    # Bars around an image are of one colour in both, so the darkest and the lightest say what the levels are.
    low, high = black.min(axis=(1, 2), keepdims=True), white.max(axis=(1, 2), keepdims=True)
    levels: NDArray[np.float32] = (pixels - low) / (high - low) * 255
    shown: NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return shown.transpose(1, 2, 0)


def draw(pixels: NDArray[np.uint8], grid: tuple[int, int], panels: Sequence[Panel], title: str = "") -> Image.Image:
    """Panels side by side: kept tokens in full colour and framed, the others pale.

    Parameters
    ----------
    pixels : array of shape (H, W, 3)
        As the model sees them.
    grid : (int, int)
        Rows and columns of tokens.
    panels : sequence of Panel
    title : str
    """
    font = ImageFont.load_default(size=15)
    height = round(PANEL * pixels.shape[0] / pixels.shape[1])
    width = MARGIN + len(panels) * (PANEL + MARGIN)
    heading = wrapped(title, width - 2 * MARGIN, font)
    captions = [wrapped(panel.caption, PANEL, font) for panel in panels]
    top = MARGIN + (len(heading) * LINE + MARGIN // 2 if title else 0)
    size = (width, top + height + max(map(len, captions)) * LINE + MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for line, text in enumerate(heading):
        pen.text((MARGIN, MARGIN + line * LINE), text, INK, font)
    for number, panel in enumerate(panels):
        left = MARGIN + number * (PANEL + MARGIN)
        sheet.paste(_panel(pixels, grid, panel.kept).resize((PANEL, height), Image.Resampling.BICUBIC), (left, top))
        for place in [] if panel.kept is None else panel.kept.tolist():
            row, column = divmod(place, grid[1])
            x0, y0 = left + column * PANEL / grid[1], top + row * height / grid[0]
            x1, y1 = left + (column + 1) * PANEL / grid[1], top + (row + 1) * height / grid[0]
            pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=FRAME, width=2)
        for line, text in enumerate(captions[number]):
            pen.text((left, top + height + 4 + line * LINE), text, INK, font)
    return sheet


def wrapped(text: str, width: int, font: Font) -> list[str]:
    """Lines of a text that are no wider than `width` pixels, broken at spaces, or inside a word that is wider."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while len(word) > 1 and font.getlength(word) > width:
            part = next(end for end in range(len(word) - 1, 0, -1) if end == 1 or font.getlength(word[:end]) <= width)
            lines.append(word[:part])
            word = word[part:]
        lines.append(word)
    return lines


def _panel(pixels: NDArray[np.uint8], grid: tuple[int, int], kept: NDArray[np.int64] | None) -> Image.Image:
    if kept is None:
        return Image.fromarray(pixels)
    there = np.zeros(grid[0] * grid[1], dtype=np.uint8)
    there[kept] = 1
    mask = Image.fromarray(there.reshape(grid)).resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.NEAREST)
    pale = 255 - (255 - pixels.mean(axis=2, keepdims=True)) * CONTRAST
    return Image.fromarray(np.where(np.asarray(mask)[:, :, None] == 1, pixels, pale).astype(np.uint8))

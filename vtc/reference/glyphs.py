"""Coverage masks of what scenes are made of: shapes, rings with a gap, striped discs, digits, numbers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vtc.reference.digits import load_glyphs

SHAPES = ("circle", "square", "triangle", "star", "cross")
GAPS = ("left", "right", "top", "bottom")
STRIPES = ("horizontal", "vertical", "diagonal")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (235, 40, 40),
    "yellow": (240, 225, 40),
    "green": (40, 200, 60),
    "cyan": (50, 220, 235),
    "blue": (50, 75, 245),
    "pink": (245, 80, 220),
}

_OVERSAMPLE = 3
_GAP_ANGLE = {"right": 0.0, "bottom": 90.0, "left": 180.0, "top": 270.0}

Mask = NDArray[np.float32]


def _polygon(shape: str) -> list[tuple[float, float]]:
    """Corners in the unit square centred at zero, before rotation."""
    if shape == "square":
        return [(-0.40, -0.40), (0.40, -0.40), (0.40, 0.40), (-0.40, 0.40)]
    if shape == "triangle":
        return [(0.0, -0.46), (0.46, 0.40), (-0.46, 0.40)]
    if shape == "star":
        return [(r * math.sin(math.pi * k / 5), -r * math.cos(math.pi * k / 5)) for k, r in enumerate([0.5, 0.2] * 5)]
    a, b = 0.15, 0.47
    return [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]


def shape_mask(shape: str, size: int, rng: np.random.Generator) -> Mask:
    """A filled shape, turned by up to 12 degrees.

    Parameters
    ----------
    shape : str
        One of ``SHAPES``.
    size : int
        Side of the mask in pixels.
    rng : numpy Generator
        Source of the rotation.

    Returns
    -------
    array of shape (size, size)
        Coverage in 0..1.
    """
    side = size * _OVERSAMPLE
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        draw.ellipse((side * 0.05, side * 0.05, side * 0.95, side * 0.95), fill=255)
    else:
        angle = math.radians(float(rng.uniform(-12, 12)))
        c, s = math.cos(angle), math.sin(angle)
        points = [((0.5 + c * x - s * y) * side, (0.5 + s * x + c * y) * side) for x, y in _polygon(shape)]
        draw.polygon(points, fill=255)
    return _shrink(canvas)


def ring_mask(gap: str, size: int, rng: np.random.Generator) -> Mask:
    """A ring whose ``gap`` side ("left", "right", "top", "bottom") is open by about 70 degrees."""
    side = size * _OVERSAMPLE
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    middle = _GAP_ANGLE[gap] + float(rng.uniform(-10, 10))
    half = float(rng.uniform(32, 40))
    width = int(side * float(rng.uniform(0.16, 0.20)))
    draw.arc(
        (side * 0.04, side * 0.04, side * 0.96, side * 0.96),
        middle + half,
        middle - half + 360,
        fill=255,
        width=width,
    )
    return _shrink(canvas)


def disc_mask(stripes: str, size: int, rng: np.random.Generator) -> Mask:
    """A disc filled with parallel stripes; "diagonal" is either diagonal."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) - (size - 1) / 2
    period = float(rng.uniform(7.5, 9.5))
    phase = float(rng.uniform(0, 2 * math.pi))
    if stripes == "horizontal":
        along = rows
    elif stripes == "vertical":
        along = columns
    else:
        along = (rows + (1 if rng.random() < 0.5 else -1) * columns) / math.sqrt(2)
    lines = np.clip(0.5 + 2.0 * np.sin(2 * math.pi * along / period + phase), 0, 1)
    inside = np.clip(size * 0.47 - np.sqrt(rows**2 + columns**2) + 0.5, 0, 1)
    return np.asarray(lines * inside, dtype=np.float32)


def digit_mask(digit: int, size: int, split: str, rng: np.random.Generator) -> Mask:
    """A handwritten digit by a writer of ``split``, scaled to ``size``, slightly turned and slanted."""
    samples = load_glyphs(split)[digit]
    glyph = Image.fromarray(samples[int(rng.integers(len(samples)))])
    width, height = int(size * float(rng.uniform(0.8, 0.95))), size
    angle = math.radians(float(rng.uniform(-8, 8)))
    slant = float(rng.uniform(-0.12, 0.12))
    scale_x, scale_y = 8.6 / width, 8.6 / height
    a, b = scale_x * math.cos(angle), scale_x * (math.sin(angle) + slant)
    d, e = -scale_y * math.sin(angle), scale_y * math.cos(angle)
    # The affine map takes output pixels to glyph pixels; its constants keep the two centres together.
    c = 4.0 - a * width / 2 - b * height / 2
    f = 4.0 - d * width / 2 - e * height / 2
    turned = glyph.transform((width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)
    return np.asarray(np.clip(np.asarray(turned, dtype=np.float32) / 200.0, 0, 1), dtype=np.float32)


def number_mask(tens: int, units: int, size: int, split: str, rng: np.random.Generator) -> tuple[Mask, int]:
    """Two digits side by side, read as one number.

    Returns
    -------
    mask : array of shape (size, width)
        Coverage in 0..1.
    seam : int
        Column where the second digit begins, in pixels.
    """
    left, right = digit_mask(tens, size, split, rng), digit_mask(units, size, split, rng)
    seam = left.shape[1] - 3
    mask = np.zeros((size, seam + right.shape[1]), dtype=np.float32)
    mask[:, : left.shape[1]] = left
    mask[:, seam:] = np.maximum(mask[:, seam:], right)
    return mask, seam


def _shrink(canvas: Image.Image) -> Mask:
    return np.asarray(canvas.reduce(_OVERSAMPLE), dtype=np.float32) / 255.0

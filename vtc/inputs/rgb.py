"""Pictures of any type as upright RGB of 8 bits a channel: what an image processor begins with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vtc.errors import InputError

Levels = NDArray[np.uint8]

_SIXTEEN_BIT = ("PPM", "PNG")
"""Formats whose 32-bit images, as Pillow has them, always are files of 16 bits."""


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB, turned upright as its EXIF orientation says; transparency is laid on white.

    Parameters
    ----------
    image : PIL image
        In any mode; integers and floating-point numbers are scaled as in :func:`levels`.

    Raises
    ------
    InputError
        If its values are none of an image.
    """
    deep = image.mode == "I" and image.format in _SIXTEEN_BIT
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        return Image.fromarray(levels(values.astype(np.uint16) if deep else values)).convert("RGB")
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def from_array(array: NDArray[Any]) -> Image.Image:
    """An array, such as a camera's frame, as an image.

    Parameters
    ----------
    array : array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
        Grey, RGB or RGBA, of any type that :func:`levels` takes. OpenCV's frames are BGR: give ``frame[..., ::-1]``.

    Raises
    ------
    InputError
        If it is no image.
    """
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        raise InputError(f"an array of shape {shape} has its channels first; give array.transpose(1, 2, 0)")
    if array.ndim == 4:
        raise InputError(f"an array of shape {shape} is a stack of images; give them as a list")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise InputError(f"an array of shape {_short(shape)} is no image; give (rows, columns) or (rows, columns, 3)")
    if not array.size:
        raise InputError(f"an array of shape {shape} holds no pixel")
    picture = levels(array[..., 0] if array.ndim == 3 and shape[2] == 1 else array)
    return Image.fromarray(np.ascontiguousarray(picture))


def levels(values: NDArray[Any]) -> Levels:
    """Values of pixels as levels from 0 to 255, scaled by their type.

    Bytes are levels already, white is True of booleans, 65535 of uint16 and 1.0 of floating-point numbers. Wider and
    signed integers often hold narrower ones: white is the first of 255, 65535 and the type's own largest value that
    none of them exceeds. The high byte of an integer is its level, as in Pillow.

    Parameters
    ----------
    values : array of any shape, not empty

    Raises
    ------
    InputError
        If a value is negative, not a number, or beyond white.
    """
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return np.where(values, np.uint8(255), np.uint8(0))
    if kind not in "uif":
        raise InputError(f"an array of {values.dtype.name} is no image; give uint8, uint16 or float32 from 0 to 1")
    low, high = values.min(), values.max()
    if kind == "f":
        if not (low >= 0 and high <= 1):  # not a number is neither
            raise InputError(
                f"floating-point values from {low:.4g} to {high:.4g}; an image's run from 0 (black) to 1 (white), "
                "so divide by what is white"
            )
        return np.rint(values.astype(np.float32) * 255).astype(np.uint8)
    if low < 0:
        raise InputError(f"integer values from {low} to {high}; an image's run from 0 (black) up")
    largest = int(np.iinfo(values.dtype).max)
    whites = (255, 65535, largest) if kind == "i" or values.dtype.itemsize > 2 else (largest,)
    white = next((white for white in whites if int(high) <= white <= largest), largest)
    return (values >> max(white.bit_length() - 8, 0)).astype(np.uint8)


def _short(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) < 8 else f"of {len(shape)} axes"

"""Pictures of any type as upright RGB of 8 bits a channel: what an image processor begins with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from vtc.errors import InputError

Levels = NDArray[np.uint8]

_SIXTEEN_BIT = ("PPM", "PNG")
"""Formats whose 32-bit images, as Pillow has them, always are files of 16 bits."""

_BITS, _SHADES, _NUMBERS = 258, 262, 339
"""Tags of a TIFF: bits of a sample, which end of them is black, and what kind of numbers they are."""

_FROM_WHITE = 0
_TYPES = {(8, 2): np.int8, (16, 2): np.int16, (32, 1): np.uint32}
"""Bits and kind of numbers of TIFFs that Pillow gives as another type, and their own."""

_DARKEST = 16
"""Level that the lightest pixel of wide integers must reach; below, nothing says what is white."""

_ROUNDING = 1 / 510
"""Half a level: floating-point values that are so little below black or above white were rounded."""


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB, turned upright as its EXIF orientation says; transparency is laid on white.

    Parameters
    ----------
    image : PIL image
        In any mode; integers and floating-point numbers are scaled as in :func:`levels`.

    Returns
    -------
    Image
        The very image where it is upright RGB already: nothing is copied.

    Raises
    ------
    InputError
        If its values are none of an image.
    """
    tags = getattr(image, "tag_v2", {})
    deep = image.mode == "F" or image.mode.startswith("I") or _first(tags, _NUMBERS) == 2
    stored = image.format in _SIXTEEN_BIT
    image = _upright(image)
    if deep and len(image.getbands()) == 1:
        values = np.asarray(image)
        shades = levels(values.astype(np.uint16) if stored and image.mode == "I" else _as_stored(values, tags))
        if _first(tags, _SHADES) == _FROM_WHITE:
            shades = 255 - shades
        if isinstance(clear := image.info.get("transparency"), int):
            shades = np.where(values == clear, np.uint8(255), shades)
        return Image.fromarray(shades).convert("RGB")
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if "A" in image.getbands() or "transparency" in image.info:
        over = image if image.mode == "RGBA" else image.convert("RGBA")
        if "transparency" not in over.info and over.getchannel("A").getextrema() == (255, 255):
            return over.convert("RGB")  # nothing shows through
        return Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # what cannot be read says nothing of how a picture stands
        return image
    # It would copy an image that stands upright.
    return ImageOps.exif_transpose(image) if turned else image


def _as_stored(values: NDArray[Any], tags: Any) -> NDArray[Any]:
    """Values of a TIFF as its file has them, whose sign and width Pillow forgets."""
    bits = _first(tags, _BITS)
    if bits == 12:
        return values << 4
    return values.astype(_TYPES.get((bits, _first(tags, _NUMBERS) or 1), values.dtype))


def _first(tags: Any, tag: int) -> Any:
    value = tags.get(tag)
    return value[0] if isinstance(value, tuple) and value else value


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
    if picture.shape[2:] == (3,) and picture.strides[2] == -1:
        # A frame of OpenCV's, turned to RGB by a view alone: Pillow reads it as it lies in memory.
        stored = np.ascontiguousarray(picture[..., ::-1])
        return Image.frombuffer("RGB", (shape[1], shape[0]), stored, "raw", "BGR", 0, 1)
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
        If a value is negative, not a number, or beyond white, or nothing says what is white.
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
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # not a number is neither
            raise InputError(
                f"floating-point values from {low:.6g} to {high:.6g}; an image's run from 0 (black) to 1 (white), "
                "so divide by what is white"
            )
        scaled = values.clip(0, 1).astype(np.float32, copy=False)
        scaled *= 255
        return np.rint(scaled, out=scaled).astype(np.uint8)
    if low < 0:
        raise InputError(f"integer values from {low} to {high}; an image's run from 0 (black) up")
    largest = int(np.iinfo(values.dtype).max)
    whites = (255, 65535, largest) if kind == "i" or values.dtype.itemsize > 2 else (largest,)
    white = next((white for white in whites if int(high) <= white <= largest), largest)
    bits = max(white.bit_length() - 8, 0)
    if white > 65535 and int(high) >> bits < _DARKEST:
        raise InputError(
            f"integer values from {low} to {high} of {values.dtype.itemsize * 8} bits, which do not say what is white; "
            "scale them to 65535 or 255"
        )
    return (values >> bits).astype(np.uint8)


def _short(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) < 8 else f"of {len(shape)} axes"

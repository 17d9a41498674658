"""Images from wherever they come, opened safely: the one way in."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, _imaging

from vtc.errors import InputError, OutOfResources, one_line
from vtc.files import open_regular
from vtc.inputs.pixels import MAX_PIXELS
from vtc.inputs.rgb import from_array, to_rgb
from vtc.runtime.image_streams import PatientStream, check_effort

ImageLike = str | Path | Image.Image | NDArray[Any] | bytes | bytearray | memoryview | BinaryIO

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is opened. Pillow knows more, some of which run outside programs."""

MAX_BYTES = 4 * MAX_PIXELS
"""Largest file that is opened: what the largest image takes uncompressed. Some decoders read a file whole first."""

_NAME = 200
"""Characters of a path that an error shows."""

_URL = re.compile(r"(?i)\A([a-z][a-z0-9+.-]+):/|\A(data):")
_ONE_SLASH = re.compile(r"(?i)\A([a-z][a-z0-9+.-]+):/(?=[^/])")


def open_image(image: ImageLike) -> Image.Image:
    """Open an image.

    Parameters
    ----------
    image : path, PIL image, array, bytes, or binary file object
        An array is a frame of shape (H, W) or (H, W, 3 or 4), RGB, see :func:`vtc.inputs.rgb.from_array`. Bytes and
        file objects hold an image file.

    Returns
    -------
    Image
        RGB, turned upright as its EXIF orientation says, transparency laid on white, integers and floating-point
        numbers scaled by their type. The very image that is given, if it is all that: nothing is copied.

    Raises
    ------
    InputError
        If it is missing, no image, truncated, animated, or larger than :data:`vtc.inputs.pixels.MAX_PIXELS` or
        :data:`MAX_BYTES`, which is found out before pixels are decoded.
    OutOfResources
        If file handles or memory do not suffice.
    """
    name = _name(image)
    try:
        return _opened(image)
    except InputError as error:
        raise type(error)(f"{name}: {error}") from None
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise _fault(name, error) from error


def open_several(image: ImageLike | Sequence[ImageLike] | None) -> list[Image.Image]:
    """Open an image, or several, or none."""
    if image is None:
        return []
    if isinstance(image, Sequence) and not isinstance(image, str | bytes | bytearray | memoryview):
        return [open_image(one) for one in image]
    return [open_image(image)]


def open_batch(images: Sequence[Sequence[ImageLike]]) -> list[list[Image.Image]]:
    """Open the images of each prompt of a batch."""
    return [[open_image(image) for image in group] for group in images]


def _opened(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        checked = _checked(image)
        return image.copy() if checked is image and _moves_on(image) else checked
    if isinstance(image, np.ndarray):
        if image.ndim > 1:
            _check_size(image.shape[1], image.shape[0])
        return to_rgb(from_array(image))
    if isinstance(image, str | Path):
        return _file(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return _decoded(io.BytesIO(_bounded(bytes(image))))
    if hasattr(image, "read"):
        data = image.read(MAX_BYTES + 1)
        if not isinstance(data, bytes | bytearray):
            raise InputError("gives text; open it in binary mode")
        return _decoded(io.BytesIO(_bounded(data)))
    raise InputError("is no image; give a path, a PIL image, an array, bytes or a binary file object")


def _file(path: str | Path) -> Image.Image:
    # A path object has one of the two slashes after a scheme.
    if found := _URL.match(str(path)):
        scheme = str(found[1] or found[2]).lower()
        raise InputError(
            "is encoded data, not a path; decode it and give the bytes"
            if scheme == "data"
            else "is a URL, and nothing is fetched here; download it first and give the file"
        )
    try:
        stream = open_regular(path)
    except ValueError as error:
        raise InputError("is not a path" if "null" in str(error) else f"{error}; give an image file") from None
    with stream:
        _check_bytes(os.fstat(stream.fileno()).st_size)
        return _decoded(stream)


def _decoded(file: Any) -> Image.Image:
    _quiet_libtiff()
    check_effort(file)
    stream: Any = PatientStream(file)
    with warnings.catch_warnings():
        # Pillow warns of large images and odd metadata; what matters is an error.
        warnings.simplefilter("ignore")
        with Image.open(stream, formats=FORMATS) as image:
            _check_size(*image.size)
            # A stereo or burst photo (MPO, found by the JPEG reader) opens as its main picture; any other second frame
            # makes it an animation or a document.
            # Frames are not counted, as there may be millions.
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise InputError("has several frames or pages; give a still image")
            return _checked(image)


def _checked(image: Image.Image) -> Image.Image:
    _check_size(*image.size)
    if not min(image.size):
        raise InputError("holds no pixel")
    image.load()
    if image.mode in ("P", "PA") and not (image.palette and image.palette.palette):
        raise InputError("numbers the colours of a palette that it does not have; save it anew")
    return to_rgb(image)


def _moves_on(image: Image.Image) -> bool:
    """Whether another frame of an image's file may take its place."""
    return type(image).seek is not Image.Image.seek and bool(getattr(image, "is_animated", True))


def _bounded(data: bytes | bytearray) -> bytes | bytearray:
    _check_bytes(len(data))
    return data


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise InputError(f"has more than the {MAX_BYTES // 2**20} MiB that are accepted of an image file; shrink it")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(_too_large(f"{width}x{height} pixels,"))


def _too_large(size: str) -> str:
    return f"{size} more than the {MAX_PIXELS // 2**20} megapixels that are accepted; shrink the image first"


def _fault(name: str, error: Exception) -> InputError:
    """What a decoder or the system raised, in the user's words."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.EMFILE, errno.ENFILE):
        return OutOfResources(f"{name}: cannot be opened, no file handle is left; close files or raise 'ulimit -n'")
    if isinstance(error, MemoryError) or code == errno.ENOMEM or "out of memory" in str(error):
        return OutOfResources(f"{name}: cannot be decoded, memory does not suffice; free some or shrink the image")
    if isinstance(error, FileNotFoundError):
        return InputError(f"{name}: no such image file")
    if isinstance(error, Image.DecompressionBombError):
        return InputError(f"{name}: {_too_large('far')}")
    if isinstance(error, UnidentifiedImageError):
        return InputError(f"{name}: is not an image of a known format; save it as one of {', '.join(FORMATS)}")
    if code is not None:
        return InputError(f"{name}: cannot be read ({os.strerror(code)})")
    return InputError(f"{name}: cannot be decoded, the file is truncated or damaged ({one_line(error)})")


def _name(image: ImageLike) -> str:
    """What an error calls an image; never its content."""
    if isinstance(image, str | Path):
        name = _ONE_SLASH.sub(r"\1://", str(image)) or "''"  # as it was typed: a path object drops one of the two
        return name if len(name) <= _NAME else f"{name[:_NAME]}..."
    if isinstance(image, bytes | bytearray | memoryview):
        return f"image of {len(image)} bytes"
    return "image" if isinstance(image, Image.Image | np.ndarray) else type(image).__name__


@cache
def _quiet_libtiff() -> None:
    """Have libtiff print nothing of its own on stderr; what it finds is raised as well.

    Its functions are found through the module of Pillow that is linked with it, where the system looks there.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            handler.restype, handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            handler(None)

"""Images from files, opened safely."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from vtc.errors import InputError
from vtc.inputs.pixels import MAX_PIXELS, to_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is opened. Pillow knows more, some of which run outside programs."""


def open_image(path: str | Path) -> Image.Image:
    """Read an image file.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Image
        RGB, turned upright as its EXIF orientation says, transparency laid on white.

    Raises
    ------
    InputError
        If the file is missing, no image, truncated, animated, or larger than
        :data:`vtc.inputs.pixels.MAX_PIXELS`, which
        is found out before its pixels are decoded.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and odd metadata; what matters is an error below.
            warnings.simplefilter("ignore")
            return _read(path)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such image file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory, not an image file") from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(path, "far")) from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: is not an image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise InputError(f"{path}: cannot be decoded, the file is truncated or damaged ({error})") from error


def _read(path: str | Path) -> Image.Image:
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(_too_large(path, f"{width}x{height} pixels,"))
        # A stereo or burst photo (MPO, found by the JPEG reader) opens as its main picture; any other second frame
        # makes it an animation or a document.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise InputError(f"{path}: has several frames or pages; give a still image")
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def _too_large(path: str | Path, size: str) -> str:
    limit = MAX_PIXELS // 2**20
    return f"{path}: {size} more than the {limit} megapixels that are accepted; shrink the image first"

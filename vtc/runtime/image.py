"""Images: opened safely, and turned into pixels exactly as the checkpoint's own processor does it.

Based on `transformers`' CLIPImageProcessor and SiglipImageProcessor (PIL backend): resize, centre crop (CLIP alone),
rescale, normalise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vtc.errors import BundleError, InputError

Pixels = NDArray[np.float32]

MAX_PIXELS = 64 * 2**20
"""Largest image that is decoded; 4 bytes a pixel."""

MAX_RESIZED_PIXELS = MAX_PIXELS
"""Largest image that a resize may make; beyond it (aspect ratios of many hundreds) only what the crop keeps
is computed."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is opened. Pillow knows more, some of which run outside programs."""

CROPS = {"CLIPImageProcessor": True, "SiglipImageProcessor": False}
"""Image processors, and whether each crops the centre where its settings do not say."""


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
        If the file is missing, no image, truncated, animated, or larger than :data:`MAX_PIXELS`, which is
        found out before its pixels are decoded.
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


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB; transparency is laid on white, 16-bit grey is reduced to 8."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class ImageProcessor:
    """Turns images into the pixels that a vision graph takes.

    Attributes
    ----------
    resize : dict or None
        ``{"shortest_edge": n}``, also with ``"longest_edge"``, or ``{"height": h, "width": w}``; None leaves
        images as they are.
    resample : Image.Resampling
    crop : (int, int) or None
        Rows and columns of the centre crop.
    table : array of shape (3, 256), float32
        Value of each grey level of each channel, rescaled and normalised. Levels are 8 bit, so a lookup is
        exact.
    """

    resize: Mapping[str, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None
    table: Pixels

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImageProcessor:
        """Read ``preprocessor_config.json``, or the ``image_processor`` of ``processor_config.json``.

        Raises
        ------
        BundleError
            If it asks for a step that this runtime does not have.
        """
        kind = str(config.get("image_processor_type", "CLIPImageProcessor"))
        family = kind.removesuffix("Pil").removesuffix("Fast")
        if family not in CROPS:
            raise BundleError(f"bundle asks for image processor '{kind}'; this vtc runs {', '.join(CROPS)}")
        if config.get("do_pad"):
            raise BundleError("bundle asks for padded images (do_pad), which this vtc does not do")
        try:
            resize = _size(config["size"]) if config.get("do_resize", True) else None
            crop = _size(config["crop_size"], square=True) if config.get("do_center_crop", CROPS[family]) else None
            return cls(
                resize=resize,
                resample=Image.Resampling(int(config.get("resample", Image.Resampling.BICUBIC))),
                crop=(crop["height"], crop["width"]) if crop else None,
                table=_levels(config),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"bundle's image processor settings cannot be used ({error!r}); export it again"
            ) from None

    def __call__(self, images: Sequence[Image.Image]) -> Pixels:
        """Pixels (images, 3, H, W), float32."""
        return np.stack([self._one(image) for image in images])

    def _one(self, image: Image.Image) -> Pixels:
        image = to_rgb(image)
        if self.resize is not None:
            height, width = _resized(image.height, image.width, self.resize)
            if height * width > MAX_RESIZED_PIXELS and self.crop is not None:
                return self._look_up(self._resized_centre(image, height, width, self.crop))
            # Pillow leaves an image that has the size already alone, too.
            image = image.resize((width, height), self.resample)
        return self._look_up(_centre_crop(np.asarray(image), self.crop) if self.crop else np.asarray(image))

    def _resized_centre(self, image: Image.Image, height: int, width: int, crop: tuple[int, int]) -> NDArray[np.uint8]:
        """The centre (h, w) of the image resized to (height, width), without computing the rest."""
        rows, columns = min(crop[0], height), min(crop[1], width)
        top, left = (height - rows) // 2, (width - columns) // 2
        y, x = image.height / height, image.width / width
        # Source rows under the kept ones, and as many around them as the widest filter reaches.
        reach = math.ceil(3 * max(y, 1)) + 1
        first, last = (
            max(math.floor(top * y) - reach, 0),
            min(math.ceil((top + rows) * y) + reach, image.height),
        )
        strip = image.crop((0, first, image.width, last))
        # Horizontally, then vertically: the order that Pillow takes when it enlarges the whole image, which
        # is always the case here because what is too large resized was not too large before. Given both boxes
        # at once it may choose the other.
        strip = strip.resize(
            (columns, strip.height), self.resample, box=(left * x, 0, (left + columns) * x, strip.height)
        )
        box = (0, top * y - first, columns, (top + rows) * y - first)
        return _centre_crop(np.asarray(strip.resize((columns, rows), self.resample, box=box)), crop)

    def _look_up(self, image: NDArray[np.uint8]) -> Pixels:
        return np.stack([self.table[channel][image[:, :, channel]] for channel in range(3)])


def _size(value: Any, square: bool = False) -> dict[str, int]:
    """A size as transformers writes it: a mapping, or a number for the shortest edge (of a crop: both)."""
    if isinstance(value, int):
        return {"height": value, "width": value} if square else {"shortest_edge": value}
    size = {str(key): int(edge) for key, edge in value.items() if edge is not None}
    if min(size.values()) < 1:
        raise ValueError(f"size {size}")
    if set(size) not in ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        raise ValueError(f"size {size}")
    return size


def _resized(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """Rows and columns after a resize."""
    if "height" in size:
        return size["height"], size["width"]
    short, edge = min(height, width), size["shortest_edge"]
    long = max(height, width)
    if "longest_edge" not in size:
        other = int(edge * long / short)
    else:
        raw = size["longest_edge"] * short / long if long / short * edge > size["longest_edge"] else None
        edge = edge if raw is None else round(raw)
        # Where the short edge is right already, transformers leaves the image alone.
        other = long if short == edge else int((edge if raw is None else raw) * long / short)
    return (other, edge) if width <= height else (edge, other)


def _centre_crop(image: NDArray[np.uint8], crop: tuple[int, int]) -> NDArray[np.uint8]:
    """The centre (h, w) of an image (H, W, 3); an image that is too small gets black around it."""
    height, width = image.shape[:2]
    # An odd margin goes to the bottom right of a crop and to the top left of a frame, as transformers has it.
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    inner = image[max(top, 0) : max(top, 0) + crop[0], max(left, 0) : max(left, 0) + crop[1]]
    if inner.shape[:2] == crop:
        return inner
    frame = np.zeros((*crop, 3), dtype=np.uint8)
    down, right = max(-top, 0), max(-left, 0)
    frame[down : down + inner.shape[0], right : right + inner.shape[1]] = inner
    return frame


def _levels(config: Mapping[str, Any]) -> Pixels:
    levels = np.arange(256)
    scaled = levels.astype(np.float32)
    if config.get("do_rescale", True):
        scaled = (levels.astype(np.float64) * config.get("rescale_factor", 1 / 255)).astype(np.float32)
    if not config.get("do_normalize", True):
        return np.tile(scaled, (3, 1))
    mean = np.broadcast_to(np.asarray(config["image_mean"], dtype=np.float32), 3)[:, None]
    std = np.broadcast_to(np.asarray(config["image_std"], dtype=np.float32), 3)[:, None]
    return np.asarray((scaled - mean) / std, dtype=np.float32)

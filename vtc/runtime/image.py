"""Images: opened safely, and turned into pixels exactly as the checkpoint's own processor does it.

Based on `transformers`' CLIPImageProcessor and SiglipImageProcessor (PIL backend): resize, centre crop (CLIP alone),
rescale, normalise.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from vtc.errors import BundleError, InputError
from vtc.pixel_settings import plain_spec
from vtc.pixels import MAX_PIXELS, Pixels, PixelSpec, to_pixels, to_rgb

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
        If the file is missing, no image, truncated, animated, or larger than :data:`vtc.pixels.MAX_PIXELS`, which is
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


@dataclass(frozen=True)
class ImageProcessor:
    """Turns images into the pixels that a vision graph takes.

    Attributes
    ----------
    spec : PixelSpec
    """

    spec: PixelSpec

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
        try:
            return cls(plain_spec({"do_center_crop": CROPS[family], **config}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"bundle's image processor settings cannot be used ({error!r}); export it again"
            ) from None

    def __call__(self, images: Sequence[Image.Image]) -> Pixels:
        """Pixels (images, 3, H, W), float32."""
        return to_pixels(self.spec, images)

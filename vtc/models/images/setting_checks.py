"""What the settings of image and video processors may be, checked before any of them is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vtc.errors import ModelError
from vtc.shown import shown

LARGEST = 2**31 - 1
"""Of any number that counts pixels."""

MOST_TILES = 1024
"""Of one image; published checkpoints have up to 36."""

SHOWN = 60
"""Characters of a wrong value that an error shows."""


def check_settings(settings: Mapping[str, Any], file: Path) -> None:
    """Refuse settings of a wrong type, sizes that are not positive, numbers that are not finite.

    What is null, which turns a step off, and what vtc does not read are let pass.

    Parameters
    ----------
    settings : mapping
        Of an image or a video processor.
    file : Path
        Where they come from.

    Raises
    ------
    ModelError
    """
    for name, (holds, wanted) in CHECKS.items():
        value = settings.get(name)
        if value is not None and not holds(value):
            raise ModelError(
                f"{file}: {name} is {shown(repr(value), SHOWN)}, not {wanted}; set it, or take it out for the default"
            )


def _is_count(value: Any, most: int = LARGEST) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_tile_count(value: Any) -> bool:
    return _is_count(value, MOST_TILES)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_size(value: Any) -> bool:
    if isinstance(value, Mapping):
        edges = [edge for edge in value.values() if edge is not None]
        return bool(edges) and all(map(_is_count, edges))
    return _is_count(value) or (isinstance(value, list) and len(value) in (1, 2) and all(map(_is_count, value)))


def _is_mean(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, list) and len(value) == 3 and all(map(_is_number, value)))


def _is_deviation(value: Any) -> bool:
    return _is_positive(value) or (isinstance(value, list) and len(value) == 3 and all(map(_is_positive, value)))


def _is_filter(value: Any) -> bool:
    return type(value) is int and value in list(Image.Resampling)


def _are_canvases(value: Any) -> bool:
    pairs = isinstance(value, list) and 0 < len(value) <= MOST_TILES
    return pairs and all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_count, pair)) for pair in value)


def _is_sampling(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    size, rate = value.get("video_size"), value.get("fps")
    return (size is None or _is_size(size)) and (rate is None or _is_positive(rate))


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


COUNT = (_is_count, "a whole number of at least 1")
TILES = (_is_tile_count, f"a whole number from 1 to {MOST_TILES}")
SWITCH = (_is_switch, "true or false")
POSITIVE = (_is_positive, "a positive number")
SIZE = (_is_size, "a size of positive whole numbers of pixels")
NAME = (_is_name, "a name")

CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels"), COUNT),
    **dict.fromkeys(
        ("image_seq_length", "num_frames", "max_frames", "min_frames", "pan_and_scan_min_crop_size"), COUNT
    ),
    **dict.fromkeys(("min_patches", "max_patches", "pan_and_scan_max_num_crops"), TILES),
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb"), SWITCH),
    **dict.fromkeys(("crop_to_patches", "do_image_splitting", "do_pan_and_scan", "cap_pixels_per_frame"), SWITCH),
    **dict.fromkeys(("size", "crop_size", "max_image_size"), SIZE),
    **dict.fromkeys(("image_processor_type", "video_processor_type", "feature_extractor_type"), NAME),
    **dict.fromkeys(("fps", "rescale_factor", "pan_and_scan_min_ratio_to_activate"), POSITIVE),
    "resample": (_is_filter, "a resampling filter's number from 0 to 5"),
    "image_mean": (_is_mean, "a finite number, or three of them"),
    "image_std": (_is_deviation, "a positive number, or three of them"),
    "image_grid_pinpoints": (_are_canvases, "a list of canvases, each of two positive whole numbers of pixels"),
    "video_sampling": (_is_sampling, "an object with a video_size of positive whole numbers and a positive fps"),
}
"""By the setting's name: what must hold of it, and how that is said."""

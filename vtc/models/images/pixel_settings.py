"""What the settings say that all of transformers' image processors share: ``preprocessor_config.json`` to pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtc.inputs.pixels import Picture, PixelSpec


class Needed(dict[str, Any]):
    """Settings, of which one that is null, or not there, is named where it is asked for."""

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise ValueError(f"{name} is null or missing, and is needed; set it, or take it out for the default")
        return value


def plain_spec(settings: Mapping[str, Any]) -> PixelSpec:
    """Pixels of a processor that makes one view: a resize, a centre crop, or both.

    Parameters
    ----------
    settings : mapping
        As in ``preprocessor_config.json``; ``do_center_crop`` counts as off where it is missing.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a setting is missing, of another type, or asks for views of no fixed size.
    """
    if settings.get("do_pad"):
        raise ValueError("images are to be padded (do_pad), which is not done here")
    size = edges(settings["size"]) if settings.get("do_resize", True) else {}
    crop = edges(settings["crop_size"], square=True) if settings.get("do_center_crop") else None
    picture = Picture(
        shortest_edge=size.get("shortest_edge"),
        longest_edge=size.get("longest_edge"),
        resize=((size["height"], size["width"]),) if "height" in size else (),
        crop=(crop["height"], crop["width"]) if crop else None,
    )
    return PixelSpec(pictures=(picture,), **tones(settings))


def edges(value: Any, square: bool = False) -> dict[str, int]:
    """A size as transformers writes it: a mapping, or a number for the shortest edge (of a crop: both)."""
    if isinstance(value, int):
        return {"height": value, "width": value} if square else {"shortest_edge": value}
    size = {str(key): int(edge) for key, edge in value.items() if edge is not None}
    if set(size) not in ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        raise ValueError(f"size {size}")
    if min(size.values()) < 1:
        raise ValueError(f"size {size}")
    return size


def tones(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a :class:`PixelSpec` for resampling, rescaling and normalisation."""
    normalised = settings.get("do_normalize", True)
    return {
        "resample": int(settings["resample"]) if "resample" in settings else 3,
        "rescale_factor": _rescaling(settings) if settings.get("do_rescale", True) else 1.0,
        "mean": _channels(settings["image_mean"]) if normalised else (0.0, 0.0, 0.0),
        "std": _channels(settings["image_std"]) if normalised else (1.0, 1.0, 1.0),
    }


def _rescaling(settings: Mapping[str, Any]) -> float:
    return float(settings["rescale_factor"]) if "rescale_factor" in settings else 1 / 255


def _channels(value: Any) -> tuple[float, ...]:
    values = tuple(float(part) for part in (value if isinstance(value, list | tuple) else [value] * 3))
    if len(values) != 3:
        raise ValueError(f"{len(values)} channels, not 3")
    return values

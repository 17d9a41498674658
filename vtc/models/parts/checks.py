"""What several families ask of a configuration, and how they refuse what they do not serve."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from vtc.errors import InputError, ModelError
from vtc.facts.layout import Grid, ImageOptions
from vtc.inputs.pixels import PixelSpec


def check_parts(config: Any, towers: Collection[str], decoders: Collection[str]) -> None:
    """Refuse a configuration whose tower or decoder is of a kind that an adapter does not serve.

    Raises
    ------
    ModelError
    """
    tower, decoder = config.vision_config.model_type, config.text_config.model_type
    if tower not in towers or decoder not in decoders:
        raise ModelError(
            f"{config.model_type} with tower '{tower}' and decoder '{decoder}' is not supported; "
            f"supported: {' or '.join(towers)} with {', '.join(decoders)}"
        )


def check_features(config: Any, strategies: Mapping[str, str]) -> None:
    """Refuse a configuration that takes features of several layers, or patches that are not all of a tower's.

    Raises
    ------
    ModelError
    """
    tower = config.vision_config.model_type
    strategy = strategies[tower]
    if not isinstance(config.vision_feature_layer, int) or config.vision_feature_select_strategy != strategy:
        raise ModelError(
            f"only one vision_feature_layer with vision_feature_select_strategy '{strategy}' is supported "
            f"for tower '{tower}'"
        )


def token_grid(view: Grid, patch: int, merge: int) -> Grid:
    """Rows and columns of tokens in a square view, of `merge` x `merge` patches each.

    Parameters
    ----------
    view : (rows, columns) of pixels
    patch : int
        Side of a patch in pixels.
    merge : int

    Raises
    ------
    ModelError
        If the view is not square, or tokens do not fill it, or it has none.
    """
    rows, columns = view[0] // patch, view[1] // patch
    if not rows or rows != columns or rows % merge:
        raise ModelError(
            f"views of {view[0]} x {view[1]} pixels are not square or do not divide into tokens of {merge} x {merge} "
            f"patches of {patch} pixels; set the size in the image processor's settings to one that does"
        )
    return rows // merge, columns // merge


def check_view(pixels: PixelSpec, tower: Grid) -> None:
    """Refuse a processor whose views are not as large as the vision tower takes them.

    Parameters
    ----------
    pixels : PixelSpec
        What the processor makes of an image.
    tower : (rows, columns) of pixels

    Raises
    ------
    ModelError
    """
    if pixels.view != tower:
        raise ModelError(
            f"the image processor makes views of {pixels.view[0]} x {pixels.view[1]} pixels, the vision tower takes "
            f"{tower[0]} x {tower[1]}; set size and crop_size of its settings to that"
        )


def refuse(options: ImageOptions, family: str, *asked: Literal["tiles", "frames"]) -> None:
    """Refuse what a family cannot be made ready for.

    Raises
    ------
    InputError
    """
    reasons = {
        "tiles": "does not cut images into tiles; leave out --tiles",
        "frames": "takes no clips; leave out --frames",
    }
    for name in asked:
        if getattr(options, name) != getattr(ImageOptions(), name):
            raise InputError(f"{family} {reasons[name]}")

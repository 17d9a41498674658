"""Images of any resolution: the whole image as one view, then tiles of it, their padding cut off, rows ended.

What LLaVA-NeXT and LLaVA-OneVision share.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from vtc.errors import InputError, ModelError
from vtc.facts.layout import Block, Grid, ImageLayout, ImageOptions
from vtc.inputs.pixels import PixelSpec
from vtc.models.images import resolution

USUAL_TILES = 4
"""Of an image of which nothing is said: 2 x 2."""


def with_pinpoints(config: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the image processor with the canvases of the model, which must be the processor's own.

    Raises
    ------
    ModelError
    """
    own = [list(canvas) for canvas in config.image_grid_pinpoints]
    theirs = [list(canvas) for canvas in settings.get("image_grid_pinpoints") or own]
    if own != theirs:
        raise ModelError(
            "image_grid_pinpoints of config.json and of the image processor differ, so that the model would take "
            "other tiles than it is given; make them the same"
        )
    return {**settings, "image_grid_pinpoints": own}


def tiles_to_cut(options: ImageOptions, config: Any) -> Grid | None:
    """Rows and columns of tiles; None leaves them to the image size.

    Raises
    ------
    InputError
        If the model has no such tiles.
    """
    side = config.vision_config.image_size
    canvases = sorted({(rows // side, columns // side) for rows, columns in config.image_grid_pinpoints})
    if options.tiles is None:
        usual = min(canvases, key=lambda tiles: (abs(prod(tiles) - USUAL_TILES), abs(tiles[0] - tiles[1])))
        return usual if options.image_size is None else None
    if options.tiles not in canvases:
        named = ", ".join(f"{rows}x{columns}" for rows, columns in canvases)
        raise InputError(f"the model has no tiles {options.tiles[0]}x{options.tiles[1]}; --tiles takes {named}")
    return options.tiles


def check_views(config: Any, pixels: PixelSpec) -> Grid:
    """Rows and columns of tokens in a view, which must be as large as the vision tower takes it.

    Raises
    ------
    ModelError
    """
    vision = config.vision_config
    if pixels.view != (vision.image_size,) * 2:
        raise ModelError(
            f"the image processor makes views of {pixels.view[0]} x {pixels.view[1]} pixels, and the vision tower "
            f"takes {vision.image_size} x {vision.image_size}; make them the same"
        )
    return (vision.image_size // vision.patch_size,) * 2


def tiled_layout(config: Any, pixels: PixelSpec, max_tiles: int | None = None) -> ImageLayout:
    """The tokens of an image whose views are those of `pixels`, itself and its tiles.

    Parameters
    ----------
    config
        Of the model.
    pixels : PixelSpec
        Of two pictures.
    max_tiles : int or None
        As many tokens as so many views have; where the tiles have more than about that, they are shrunk.

    Raises
    ------
    InputError
        If the image is so long and thin that the model keeps nothing of its tiles.
    """
    view = check_views(config, pixels)
    size, tiles = pixels.aspect or pixels.view, pixels.pictures[1].tiles
    top, left, *inside = resolution.unpadded(size, (tiles[0] * view[0], tiles[1] * view[1]))
    extent = grid = (inside[0], inside[1])
    if max_tiles is not None and min(extent) > 0:
        grid = resolution.interpolated(extent, view[0], max_tiles)
    if min(grid) < 1:
        raise InputError(
            f"images of {size[1]} x {size[0]} pixels are so long and thin that the model keeps none of their tiles; "
            "take another --image-size, into which they are fitted"
        )
    tiled = Block(grid, tiles, (top, left), None if grid == extent else extent, line_ends=True)
    return ImageLayout(size, view, (Block(view), tiled))

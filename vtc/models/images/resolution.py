"""How each image processor chooses sizes and tiles. Pure functions of (rows, columns), without pixels.

Where floating point decides, the order of operations is that of the processor or model named, so that no size differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vtc.errors import ModelError

Size = tuple[int, int]
Box = tuple[float, float, float, float]

MAX_EDGE = 4096
"""Longest edge that Idefics3's and SmolVLM's processors resize to, whatever their settings say."""

MAX_RATIO = 200
"""Longest edge over shortest that Qwen's processors accept."""


# LLaVA-NeXT, LLaVA-OneVision: any resolution --------------------------------------------------------------------------


@dataclass(frozen=True)
class AnyResolution:
    """Where an image lies on the canvas that is cut into tiles (LlavaNextImageProcessor, LlavaOnevisionImageProcessor).

    Attributes
    ----------
    canvas : (rows, columns) of pixels
    content : (rows, columns) of pixels
        The image, resized in its own aspect ratio.
    offset : (top, left)
        Of the content on the canvas, in pixels.
    tiles : (rows, columns)
    """

    canvas: Size
    content: Size
    offset: Size
    tiles: Size


def any_resolution(size: Size, pinpoints: Sequence[Sequence[int]], tile: int) -> AnyResolution:
    """Canvas, content and tiles of an image.

    Parameters
    ----------
    size : (rows, columns) of the image
    pinpoints : sequence of (rows, columns)
        Canvases to choose from (``image_grid_pinpoints``); the first of equals wins.
    tile : int
        Edge of a tile in pixels.
    """
    canvas = best_resolution(size, pinpoints)
    if canvas[0] % tile or canvas[1] % tile:
        raise ModelError(f"canvas {canvas} of image_grid_pinpoints does not divide into tiles of {tile} pixels")
    content = content_size(size, canvas)
    offset = ((canvas[0] - content[0]) // 2, (canvas[1] - content[1]) // 2)
    return AnyResolution(canvas, content, offset, (canvas[0] // tile, canvas[1] // tile))


def best_resolution(size: Size, pinpoints: Sequence[Sequence[int]]) -> Size:
    """The canvas on which most of the image's resolution is kept and, among those, least of the canvas is wasted."""

    def worth(canvas: Sequence[int]) -> tuple[int, int]:
        scale = min(canvas[1] / size[1], canvas[0] / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return kept, kept - canvas[0] * canvas[1]

    if not pinpoints:
        raise ModelError("image_grid_pinpoints is empty; it lists the canvases that an image may be laid on")
    rows, columns = max(pinpoints, key=worth)
    return int(rows), int(columns)


def content_size(size: Size, canvas: Size) -> Size:
    """Rows and columns of an image resized to fill a canvas in one direction, in its own aspect ratio."""
    across, down = canvas[1] / size[1], canvas[0] / size[0]
    if across < down:
        return min(math.ceil(size[0] * across), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(size[1] * down), canvas[1])


def unpadded(size: Size, grid: Size) -> tuple[int, int, int, int]:
    """What the model keeps of a grid of tokens laid over the canvas (LlavaNext's ``unpad_image``).

    The same amount goes on both sides, so a row or column of padding may stay.

    Parameters
    ----------
    size : (rows, columns) of the image
    grid : (rows, columns) of tokens of all tiles

    Returns
    -------
    (top, left, rows, columns) of tokens
        Rows or columns are 0 for images so long and thin that the model keeps nothing.
    """
    height, width = size
    rows, columns = grid
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return padding, 0, rows - 2 * padding, columns
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return 0, padding, rows, columns - 2 * padding


def interpolated(grid: Size, side: int, max_tiles: int) -> Size:
    """Rows and columns of tokens to which LLaVA-OneVision shrinks an unpadded grid; `grid` itself if it may stay.

    Parameters
    ----------
    grid : (rows, columns)
        As :func:`unpadded` leaves them.
    side : int
        Tokens along an edge of one tile.
    max_tiles : int
        N of ``anyres_max_N`` (``vision_aspect_ratio``).
    """
    ratio = math.sqrt(grid[0] * grid[1] / (max_tiles * side**2))
    return (int(grid[0] // ratio), int(grid[1] // ratio)) if ratio > 1.1 else grid


# Qwen2-VL and later ---------------------------------------------------------------------------------------------------


def smart_resize(size: Size, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """Rows and columns as multiples of `factor`, their product within bounds (Qwen2VLImageProcessor).

    Parameters
    ----------
    size : (rows, columns) of the image
    factor : int
        Pixels along an edge of a merged block of patches.
    min_pixels, max_pixels : int
    """
    _check_ratio(size)
    return _within(size, factor, 1, 1, min_pixels, max_pixels)


def smart_resize_clip(size: Size, frames: int, factor: int, temporal: int, min_pixels: int, max_pixels: int) -> Size:
    """As :func:`smart_resize` with bounds on the pixels of all frames together (Qwen3VLVideoProcessor).

    Parameters
    ----------
    frames : int
    temporal : int
        Frames in a patch; a clip has at least as many.
    """
    if frames < temporal:
        raise ModelError(f"a clip of {frames} frames is too short; the model takes at least {temporal}")
    if min(size) < factor:
        scale = max(factor / size[0], factor / size[1])
        size = int(size[0] * scale), int(size[1] * scale)
    _check_ratio(size)
    return _within(size, factor, frames, round(frames / temporal) * temporal, min_pixels, max_pixels)


def _check_ratio(size: Size) -> None:
    if max(size) / min(size) > MAX_RATIO:
        raise ModelError(f"image size {size} is more than {MAX_RATIO} times as long as wide, which the model refuses")


def _within(size: Size, factor: int, frames: int, steps: int, min_pixels: int, max_pixels: int) -> Size:
    height, width = size
    rounded = round(height / factor) * factor, round(width / factor) * factor
    if steps * rounded[0] * rounded[1] > max_pixels:
        shrink = math.sqrt((frames * height * width) / max_pixels)
        rows, columns = (math.floor(edge / shrink / factor) * factor for edge in size)
        return max(factor, rows), max(factor, columns)
    if steps * rounded[0] * rounded[1] < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    if min(rounded) == 0:
        raise ModelError(f"image size {size} is less than half a block of {factor} pixels in one direction")
    return rounded


# InternVL -------------------------------------------------------------------------------------------------------------


def tile_grid(size: Size, tile: Size, min_tiles: int, max_tiles: int) -> Size:
    """Rows and columns of tiles whose aspect ratio is nearest to the image's (GotOcr2ImageProcessor, for InternVL).

    Of equally near grids the larger is taken while the image has more than half its pixels. A thumbnail of the whole
    image follows the tiles where there is more than one.

    Parameters
    ----------
    size : (rows, columns) of the image
    tile : (rows, columns) of a tile in pixels
    min_tiles, max_tiles : int
    """
    grids = [
        (rows, columns)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if min_tiles <= rows * columns <= max_tiles
    ]
    best, least = (1, 1), math.inf
    for rows, columns in sorted(grids, key=math.prod):
        distance = abs(size[1] / size[0] - columns / rows)
        large_enough = size[0] * size[1] > 0.5 * tile[0] * tile[1] * rows * columns
        if distance < least or (distance == least and large_enough):
            best, least = (rows, columns), distance
    return best


# Idefics3, SmolVLM ----------------------------------------------------------------------------------------------------


def longest_edge(size: Size, edge: int) -> Size:
    """Rows and columns after the first resize of Idefics3ImageProcessor: this longest edge, the other one even."""
    ratio = size[1] / size[0]
    if ratio >= 1:
        rows, columns = int(edge / ratio), edge
        rows = max(rows + rows % 2, 1)
    else:
        rows, columns = edge, int(edge * ratio)
        columns = max(columns + columns % 2, 1)
    # The bound of the longest edge is applied after, with the ratio that rounding made.
    ratio = columns / rows
    if columns >= rows and columns > MAX_EDGE:
        rows, columns = int(MAX_EDGE / ratio), MAX_EDGE
    elif rows > columns and rows > MAX_EDGE:
        rows, columns = MAX_EDGE, int(MAX_EDGE * ratio)
    return max(rows, 1), max(columns, 1)


def whole_tiles(size: Size, tile: int) -> Size:
    """Rows and columns after the second resize of Idefics3ImageProcessor: whole tiles in both directions."""
    height, width = size
    ratio = width / height
    if width >= height:
        width = _multiple(width, tile)
        height = int(width / ratio)
    else:
        height = _multiple(height, tile)
        width = int(height * ratio)
    return _multiple(height, tile), _multiple(width, tile)


def _multiple(edge: int, tile: int) -> int:
    return math.ceil(edge / tile) * tile


# Gemma 3 --------------------------------------------------------------------------------------------------------------


def pan_and_scan(size: Size, min_crop: int, max_crops: int, min_ratio: float) -> Size:
    """Rows and columns of crops that follow the whole image (Gemma3ImageProcessor); (0, 0) if it stands alone.

    Crops lie side by side along the longer edge.

    Parameters
    ----------
    size : (rows, columns) of the image
    min_crop : int
        Shortest edge of a crop in pixels.
    max_crops : int
    min_ratio : float
        Longest edge over shortest from which an image is cropped.
    """
    long, short = max(size), min(size)
    if long / short < min_ratio:
        return 0, 0
    crops = min(max_crops, max(2, min(long // min_crop, math.floor(long / short + 0.5))))
    if min(math.ceil(long / crops), short) < min_crop:
        return 0, 0
    return (1, crops) if size[1] >= size[0] else (crops, 1)


def crop_boxes(size: Size, crops: Size) -> tuple[Box, ...]:
    """Crops as (top, left, bottom, right), in fractions of the image; the last may be smaller than the others.

    Parameters
    ----------
    size : (rows, columns) of the image
    crops : (rows, columns)
    """
    rows, columns = (_cuts(edge, parts) for edge, parts in zip(size, crops, strict=True))
    return tuple((top, left, bottom, right) for top, bottom in rows for left, right in columns)


def _cuts(edge: int, parts: int) -> list[tuple[float, float]]:
    step = math.ceil(edge / parts) if parts else 0
    return [(step * part / edge, min(step * (part + 1), edge) / edge) for part in range(parts)]

"""Pixels: what an image processor does for one fixed layout, as data, and the small executor that does it.

An export serves one image size or tile layout. For it every size that a processor would work out is a constant, so a
:class:`PixelSpec` holds them all. PyTorch models and bundles run the same one; it is plain enough for JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.errors import InputError
from vtc.inputs.rgb import Levels, to_rgb

Pixels = NDArray[np.float32]
Size = tuple[int, int]

MAX_PIXELS = 64 * 2**20
"""Largest image that is decoded or made; 4 bytes a pixel."""

_SMALL = 1e-6
"""Least scale of pixels; below it, and above its inverse, an image is lost in float32."""

MAX_RESIZED_PIXELS = MAX_PIXELS
"""Largest image that a resize to a shortest edge may make; beyond it (aspect ratios of many hundreds) only what the
crop keeps is computed."""


@dataclass(frozen=True)
class Picture:
    """One picture made of an image, and the views that are cut from it. Steps run in the order of the fields.

    Attributes
    ----------
    box : (top, left, bottom, right) or None
        What is cut from the image first, as fractions of its rows and columns.
    shortest_edge, longest_edge : int or None
        The image is resized, in its own aspect ratio, to this shortest edge, or as near to it as the longest allows.
        Needs `crop`, as the size would not be fixed without.
    resize : tuple of (rows, columns)
        The image is resized to each of these in turn.
    crop : (rows, columns) or None
        The centre is kept; an image that is too small gets black around it.
    canvas : (rows, columns) or None
        The picture is pasted on a canvas of this size.
    offset : (top, left)
        Where on the canvas.
    tiles : (rows, columns)
        Equal views that the picture is cut into, row by row.
    """

    box: tuple[float, float, float, float] | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    resize: tuple[Size, ...] = ()
    crop: Size | None = None
    canvas: Size | None = None
    offset: Size = (0, 0)
    tiles: Size = (1, 1)

    def __post_init__(self) -> None:
        edges = [edge for edge in (self.shortest_edge, self.longest_edge) if edge is not None]
        sizes = [*self.resize, *(size for size in (self.crop, self.canvas) if size), self.tiles]
        _require(min(edges, default=1) > 0 and max(edges, default=1) <= MAX_PIXELS, f"an edge of {edges}")
        for size in sizes:
            _require(min(size) > 0 and math.prod(size) <= MAX_PIXELS, f"a size of {size}")
        _require(bool(self.resize or self.crop), "no size: neither a resize nor a crop")
        _require(not edges or (self.crop is not None and self.shortest_edge is not None), "edges without a crop")
        if self.box is not None:
            top, left, bottom, right = self.box
            _require(0 <= top < bottom <= 1 and 0 <= left < right <= 1, f"a box of {self.box}")
        if self.canvas is not None:
            for space, start, used in zip(self.canvas, self.offset, self._content, strict=True):
                _require(start >= 0 and start + used <= space, f"a canvas of {self.canvas} that is too small")
        for edge, parts in zip(self.size, self.tiles, strict=True):
            _require(edge % parts == 0, f"tiles {self.tiles} of unequal size")

    @property
    def _content(self) -> Size:
        return self.crop or self.resize[-1]

    @property
    def size(self) -> Size:
        """Rows and columns of the picture."""
        return self.canvas or self._content

    @property
    def view(self) -> Size:
        """Rows and columns of each view."""
        return self.size[0] // self.tiles[0], self.size[1] // self.tiles[1]

    @property
    def pads(self) -> bool:
        """Whether the picture of some image has bars around what the image gives."""
        if self.canvas is not None and self.canvas != self._content:
            return True
        if self.crop is None:
            return False
        least: Size = self.resize[-1] if self.resize else (self.shortest_edge or 1,) * 2
        if self.longest_edge is not None and not self.resize:
            least = (1, 1)
        return self.crop[0] > least[0] or self.crop[1] > least[1]


@dataclass(frozen=True)
class PixelSpec:
    """How images become the pixels that a vision encoder takes.

    Attributes
    ----------
    pictures : tuple of Picture
        In the order in which the encoder takes their views; all views have one size.
    mean, std : 3 floats
        Of each channel, after rescaling: a level becomes ``(level * rescale_factor - mean) / std``.
    rescale_factor : float
    resample : int
        Filter of every resize, by Pillow's number.
    aspect : (rows, columns) or None
        An image of another aspect ratio is padded to this one first, centred. None: any image is squashed or cropped.
    background : 3 ints
        Colour of padding and canvas.
    patches : (patch, temporal, merge) or None
        The view becomes rows, one for each patch of that many pixels and frames, those of a merge x merge block next
        to each other. A single image fills all frames of a patch.
    frames : int
        Consecutive images that make one input; more than 1 is a clip, of one view a frame.
    """

    pictures: tuple[Picture, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float = 1 / 255
    resample: int = 3
    aspect: Size | None = None
    background: tuple[int, int, int] = (0, 0, 0)
    patches: tuple[int, int, int] | None = None
    frames: int = 1

    def __post_init__(self) -> None:
        _require(bool(self.pictures), "no pictures")
        _require(len({picture.view for picture in self.pictures}) == 1, "views of different sizes")
        _require(self.frames > 0 and (self.views == 1 or self.frames == 1), "a clip of several views a frame")
        _require(all(map(math.isfinite, (*self.mean, *self.std, self.rescale_factor))), "a scale that is not finite")
        _require(min(self.std) >= _SMALL, f"a standard deviation of {min(self.std)}")
        _require(self.rescale_factor >= _SMALL, f"a rescale factor of {self.rescale_factor}")
        _require(max(map(abs, (*self.mean, *self.std, self.rescale_factor))) <= 1 / _SMALL, "a scale of no image")
        _require(self.resample in list(Image.Resampling), f"an unknown filter {self.resample}")
        _require(self.aspect is None or min(self.aspect) > 0, f"an aspect ratio of {self.aspect}")
        _require(all(0 <= level <= 255 for level in self.background), f"a background of {self.background}")
        if self.patches is not None:
            patch, _, merge = self.patches
            _require(min(self.patches) > 0 and self.views == 1, f"patches {self.patches} of {self.views} views")
            _require(not any(edge % (patch * merge) for edge in self.view), f"patches that do not fill {self.view}")

    @property
    def view(self) -> Size:
        """Rows and columns of each view."""
        return self.pictures[0].view

    @property
    def views(self) -> int:
        """Views of one image."""
        return sum(math.prod(picture.tiles) for picture in self.pictures)

    @property
    def pads(self) -> bool:
        """Whether some image gets bars of `background`, or of black, around it."""
        return self.aspect is not None or any(picture.pads for picture in self.pictures)

    @property
    def patch_grid(self) -> tuple[int, int, int]:
        """Of one input in patches: steps in time, rows and columns of patches (Qwen's ``image_grid_thw``)."""
        patch, temporal, _ = self.patches or (1, 1, 1)
        return -(-self.frames // temporal), self.view[0] // patch, self.view[1] // patch

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input's pixels.

        ``(3, H, W)``; ``(V, 3, H, W)`` for V views or frames; ``(P, C * T * p * p)`` for P patches.
        """
        if self.patches is not None:
            patch, temporal, _ = self.patches
            return math.prod(self.patch_grid), 3 * temporal * patch * patch
        parts = max(self.views, self.frames)
        return (3, *self.view) if parts == 1 else (parts, 3, *self.view)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"pixels with {what}")


def to_pixels(spec: PixelSpec, images: Sequence[Image.Image]) -> Pixels:
    """Pixels of images.

    Parameters
    ----------
    spec : PixelSpec
    images : sequence of n * `spec.frames` images, each of at least one pixel
        In any colour mode.

    Returns
    -------
    array of shape (n, *spec.shape), float32

    Raises
    ------
    InputError
        If the images do not make up whole clips.
    """
    if len(images) % spec.frames:
        raise InputError(f"{len(images)} images do not make up clips of {spec.frames} frames; give a multiple of that")
    table = _table(spec)
    inputs = np.empty((len(images) // spec.frames, *spec.shape), dtype=np.float32)
    for index, out in enumerate(inputs):
        frames = images[index * spec.frames : (index + 1) * spec.frames]
        views = [view for frame in frames for view in _views(spec, frame)]
        if spec.patches is None:
            _look_up(table, views, out.reshape(-1, 3, *spec.view))
        else:
            pixels = np.empty((len(views), 3, *spec.view), dtype=np.float32)
            _look_up(table, views, pixels)
            _lay_flat(pixels, spec.patches, out)
    return inputs


def _look_up(table: Pixels, views: Sequence[Levels], out: Pixels) -> None:
    """Write the values (V, 3, H, W) of views' levels (H, W, 3)."""
    for view, pixels in zip(views, out, strict=True):
        for channel in range(3):
            # A byte is always within the table, so no index is ever clipped; the default mode would copy the result.
            np.take(table[channel], view[..., channel], out=pixels[channel], mode="clip")


def _table(spec: PixelSpec) -> Pixels:
    """Value of each grey level of each channel (3, 256); levels are 8 bit, so a lookup is exact."""
    scaled = (np.arange(256, dtype=np.float64) * spec.rescale_factor).astype(np.float32)
    mean, std = (np.asarray(values, dtype=np.float32)[:, None] for values in (spec.mean, spec.std))
    return np.asarray((scaled - mean) / std, dtype=np.float32)


def _views(spec: PixelSpec, image: Image.Image) -> list[Levels]:
    """Grey levels (H, W, 3) of an image's views."""
    image = to_rgb(image)
    if spec.aspect is not None:
        image = _to_aspect(image, spec)
    return [view for picture in spec.pictures for view in _tiles(_picture(picture, image, spec), picture)]


def _tiles(levels: Levels, picture: Picture) -> list[Levels]:
    height, width = picture.view
    return [
        levels[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(picture.tiles[0])
        for column in range(picture.tiles[1])
    ]


def _picture(picture: Picture, image: Image.Image, spec: PixelSpec) -> Levels:
    """Grey levels (H, W, 3) of a picture, whole."""
    resample = Image.Resampling(spec.resample)
    if picture.box is not None:
        image = _boxed(image, picture.box)
    if picture.shortest_edge is not None and picture.crop is not None:
        height, width = _edged(image.height, image.width, picture.shortest_edge, picture.longest_edge)
        if height * width > MAX_RESIZED_PIXELS and not picture.resize:
            return _on_canvas(_resized_centre(image, (height, width), picture.crop, resample), picture, spec)
        image = image.resize((width, height), resample)
    for rows, columns in picture.resize:
        # Pillow leaves an image that has the size already alone, as transformers does.
        image = image.resize((columns, rows), resample)
    levels = np.asarray(image)
    return _on_canvas(_centre_crop(levels, picture.crop) if picture.crop else levels, picture, spec)


def _on_canvas(levels: Levels, picture: Picture, spec: PixelSpec) -> Levels:
    if picture.canvas is None:
        return levels
    canvas = np.empty((*picture.canvas, 3), dtype=np.uint8)
    canvas[:] = spec.background
    top, left = picture.offset
    canvas[top : top + levels.shape[0], left : left + levels.shape[1]] = levels
    return canvas


def _to_aspect(image: Image.Image, spec: PixelSpec) -> Image.Image:
    """The image on a canvas of the spec's aspect ratio, where it is off by a pixel or more."""
    height, width = _padded(image.height, image.width, spec.aspect or (1, 1))
    if height * width > MAX_PIXELS:
        # A canvas as long as a strip of an image would not fit in memory; the resizes after it shrink it anyway.
        shrink = math.sqrt(MAX_PIXELS / (height * width))
        smaller = max(int(image.width * shrink), 1), max(int(image.height * shrink), 1)
        image = image.resize(smaller, Image.Resampling(spec.resample))
        height, width = _padded(image.height, image.width, spec.aspect or (1, 1))
    if (height, width) == (image.height, image.width):
        return image
    canvas = Image.new("RGB", (width, height), spec.background)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _padded(height: int, width: int, aspect: Size) -> Size:
    return max(height, width * aspect[0] // aspect[1]), max(width, height * aspect[1] // aspect[0])


def _boxed(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """What is in the box, at least a pixel."""
    top, bottom = (round(edge * image.height) for edge in box[::2])
    left, right = (round(edge * image.width) for edge in box[1::2])
    top, left = min(top, image.height - 1), min(left, image.width - 1)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _edged(height: int, width: int, edge: int, longest: int | None) -> Size:
    """Rows and columns after a resize to a shortest edge."""
    short, long = min(height, width), max(height, width)
    if longest is None:
        other = int(edge * long / short)
    else:
        raw = longest * short / long if long / short * edge > longest else None
        edge = edge if raw is None else round(raw)
        # Where the short edge is right already, transformers leaves the image alone.
        other = long if short == edge else int((edge if raw is None else raw) * long / short)
    return (other, edge) if width <= height else (edge, other)


def _resized_centre(image: Image.Image, size: Size, crop: Size, resample: Image.Resampling) -> Levels:
    """The centre (h, w) of the image resized to `size`, without computing the rest."""
    height, width = size
    rows, columns = min(crop[0], height), min(crop[1], width)
    top, left = (height - rows) // 2, (width - columns) // 2
    y, x = image.height / height, image.width / width
    # Source rows under the kept ones, and as many around them as the widest filter reaches.
    reach = math.ceil(3 * max(y, 1)) + 1
    first, last = max(math.floor(top * y) - reach, 0), min(math.ceil((top + rows) * y) + reach, image.height)
    strip = image.crop((0, first, image.width, last))
    # Horizontally, then vertically: the order that Pillow takes when it enlarges the whole image, which is always the
    # case here because what is too large resized was not too large before. Given both boxes at once it may choose the
    # other.
    strip = strip.resize((columns, strip.height), resample, box=(left * x, 0, (left + columns) * x, strip.height))
    box = (0, top * y - first, columns, (top + rows) * y - first)
    return _centre_crop(np.asarray(strip.resize((columns, rows), resample, box=box)), crop)


def _centre_crop(image: Levels, crop: Size) -> Levels:
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


def _lay_flat(frames: Pixels, patches: tuple[int, int, int], out: Pixels) -> None:
    """Write frames (T, 3, H, W) as rows of patches (P, 3 * t * p * p); the last frame fills the last step in time."""
    patch, temporal, merge = patches
    rows, columns = frames.shape[2] // (patch * merge), frames.shape[3] // (patch * merge)
    blocks = frames.reshape(-1, 3, rows, merge, patch, columns, merge, patch)
    # Rows go by step, block row and column, row and column in the block; then channel, frame, row and column in the
    # patch.
    placed = out.reshape(-1, rows, columns, merge, merge, 3, temporal, patch, patch)
    placed = placed.transpose(0, 6, 5, 1, 3, 7, 2, 4, 8)
    for step, place in np.ndindex(placed.shape[:2]):
        placed[step, place] = blocks[min(step * temporal + place, len(blocks) - 1)]

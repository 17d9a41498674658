"""How images of one size become visual tokens: what the encoder sees, and the grids of tokens made of it.

Plain numbers, no tensors. An encoder sees a *view*, a picture of fixed size: the whole image, one tile of it, or a
frame of a video. A *block* is a grid of tokens taken from one view, or from several that stand side by side. The blocks
in turn are the tokens of an image as the decoder gets them, one run of placeholders in the prompt (a *span*); where a
processor writes text between the tiles of an image, each tile is a span of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from pydantic import TypeAdapter

from vtc.errors import BundleError

Grid = tuple[int, int]


@dataclass(frozen=True)
class ImageOptions:
    """What images a model is to be made ready for.

    Attributes
    ----------
    image_size : (int, int) or None
        Rows and columns of pixels of the images that will come; None leaves it to the family.
    tiles : (int, int) or None
        Rows and columns of tiles, for families that cut images.
    frames : int
        Above 1, each input is a clip of that many frames.
    """

    image_size: Grid | None = None
    tiles: Grid | None = None
    frames: int = 1


ANY_IMAGE = ImageOptions()
"""Whatever a family takes by default."""


def image_options_of(stored: Mapping[str, Any]) -> ImageOptions:
    """Read what images a compressed model or a bundle was made for.

    Parameters
    ----------
    stored : mapping
        What holds ``image_options``, which were called ``serving`` in earlier schemas.

    Raises
    ------
    BundleError
        If it does not say.
    """
    options = json.dumps(stored.get("image_options", stored.get("serving")))
    try:
        return TypeAdapter(ImageOptions).validate_json(options, strict=True)
    except ValueError:
        raise BundleError("the manifest does not say what images are served; compress again") from None


@dataclass(frozen=True)
class Block:
    """A grid of tokens.

    Attributes
    ----------
    grid : (int, int)
        Rows and columns of tokens.
    views : (int, int)
        Rows and columns of views that stand together as the picture it is taken from.
    offset : (int, int)
        Row and column of that picture at which the grid begins; what lies around it is padding.
    extent : (int, int) or None
        Rows and columns inside the padding, which are then resampled bilinearly to `grid`; None is `grid` itself.
    line_ends : bool
        Whether a separator follows each row.
    """

    grid: Grid
    views: Grid = (1, 1)
    offset: Grid = (0, 0)
    extent: Grid | None = None
    line_ends: bool = False

    @property
    def resized(self) -> bool:
        """Whether tokens are resampled from those of the views."""
        return self.extent is not None and self.extent != self.grid


@dataclass(frozen=True)
class ImageLayout:
    """Tokens of an image (or of a clip, frame after frame).

    Attributes
    ----------
    image_size : (int, int)
        Rows and columns of pixels of the images that it is made for.
    view_grid : (int, int)
        Rows and columns of tokens in a view.
    blocks : tuple of Block
        Of one span, in the decoder's order.
    ends : bool
        Whether a separator follows the last block.
    spans : int
        Runs of placeholders that an image takes; each has the same blocks and views of its own.
    frames : int
        Frames of a clip; 1 for images.
    time_step : float
        Temporal positions from one block to the next, where positions have three axes.
    tiles : (int, int) or None
        Rows and columns of tiles where each is a block of its own, in raster order, with the whole image after them.
    alone, several : bool
        Whether the family's own processor makes this of an image that is alone in its prompt, and of each of several.
    """

    image_size: Grid
    view_grid: Grid
    blocks: tuple[Block, ...]
    ends: bool = False
    spans: int = 1
    frames: int = 1
    time_step: float = 1.0
    tiles: Grid | None = None
    alone: bool = True
    several: bool = True

    @property
    def span_views(self) -> int:
        """Views of a span."""
        return sum(prod(block.views) for block in self.blocks)

    @property
    def views(self) -> int:
        """Views of an image."""
        return self.spans * self.span_views

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Rows and columns of each block of a span."""
        return tuple(block.grid for block in self.blocks)

    @property
    def selectable(self) -> int:
        """Tokens of a span that come of the image; the others are separators, which only unpruned images have."""
        return sum(prod(grid) for grid in self.grids)

    @property
    def tokens(self) -> int:
        """Tokens of a span, separators included."""
        return self.selectable + sum(block.grid[0] for block in self.blocks if block.line_ends) + self.ends

    @property
    def places(self) -> tuple[int, ...]:
        """Where the selectable tokens stand among all of a span, ascending."""
        return tuple(self._places())

    @property
    def whole_views(self) -> bool:
        """Whether a span is one view, all of it."""
        return self.blocks == (Block(self.view_grid),)

    @property
    def resized(self) -> bool:
        """Whether tokens are resampled, which is done in the decoder's space."""
        return any(block.resized for block in self.blocks)

    def _places(self) -> Iterator[int]:
        place = 0
        for block in self.blocks:
            rows, columns = block.grid
            for _ in range(rows):
                yield from range(place, place + columns)
                place += columns + block.line_ends


def shared_out(keep: int, sizes: Sequence[int]) -> list[int]:
    """Tokens that parts of these sizes get of `keep`, in proportion; what rounding leaves goes to the largest rests."""
    total = sum(sizes)
    shares = [keep * size // total for size in sizes]
    rests = sorted(range(len(sizes)), key=lambda part: (-(keep * sizes[part] % total), part))
    for part in rests[: keep - sum(shares)]:
        shares[part] += 1
    return shares


def smaller_grid(grid: Grid, keep: int) -> Grid | None:
    """Find the grid of exactly `keep` tokens inside `grid` whose aspect is nearest to it.

    Parameters
    ----------
    grid
        (H, W) of the input.
    keep
        Tokens wanted.

    Returns
    -------
    (int, int) or None
        (h, w) with h * w == keep, h <= H, w <= W; of two equally near the wider; None when there is none.
    """
    fits = [(h, keep // h) for h in range(1, grid[0] + 1) if keep % h == 0 and keep // h <= grid[1]]
    return min(fits, key=lambda side: (abs(math.log(side[0] * grid[1] / (side[1] * grid[0]))), side[0]), default=None)


def single_view(image_size: Grid, grid: Grid) -> ImageLayout:
    """The layout of an image that is one view."""
    return ImageLayout(image_size, grid, (Block(grid),))

"""A full view of an image and crops of it: which of an image's tokens belong to which, and where they lie.

Plain numbers, no tensors. The full view is the whole image squashed into one view. The crops tile the image, enlarged:
together they are a *picture*, whose padding leaves no tokens, so that crops at its edges may have fewer than others.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from vtc.facts.layout import Block, Grid, ImageLayout


@dataclass(frozen=True)
class Views:
    """The tokens of a full view and its crops.

    Attributes
    ----------
    grid : (int, int)
        Rows and columns of the full view's tokens.
    crops : (int, int)
        Rows and columns of crops.
    crop_grid : (int, int)
        Rows and columns of tokens in a crop, padding included.
    picture, offset : (int, int)
        Rows and columns of the crops' tokens together, padding left out, and where these begin.
    owners : tuple of int
        Of each token among all: 0 for the full view, from 1 on the crop, which are counted in raster order.
    cells : tuple of int
        Its place on `grid`, or for crops on `picture`, in raster order.
    """

    grid: Grid
    crops: Grid
    crop_grid: Grid
    picture: Grid
    offset: Grid
    owners: tuple[int, ...]
    cells: tuple[int, ...]

    @property
    def number(self) -> int:
        """Crops."""
        return prod(self.crops)

    def tokens_of(self, view: int) -> list[int]:
        """Places of a view's tokens among all, ascending."""
        return [place for place, owner in enumerate(self.owners) if owner == view]

    @property
    def regions(self) -> list[int]:
        """The crop, counted from 0, that shows what each patch of the full view does, by that patch's middle."""
        rows, columns = (
            [
                ((2 * place + 1) * shown + 2 * size * start) // (2 * size * crop)
                for size, shown, start, crop in [axis]
                for place in range(size)
            ]
            for axis in zip(self.grid, self.picture, self.offset, self.crop_grid, strict=True)
        )
        return [row * self.crops[1] + column for row in rows for column in columns]


def views_of(layout: ImageLayout) -> Views | None:
    """How a layout's tokens are those of a full view and its crops; None where the image is one view.

    Raises
    ------
    ValueError
        If they are something else; the message says what, to go on after "and".
    """
    if layout.spans > 1:
        raise ValueError(f"the {layout.spans} tiles of an image here are runs of tokens of their own")
    if layout.frames > 1:
        raise ValueError("the frames of a clip are no crops of it")
    if layout.span_views == 1:
        return None
    if layout.resized:
        raise ValueError("tokens here are resampled from several crops")
    blocks = layout.blocks
    if len(blocks) == 2 and blocks[0] == Block(layout.view_grid, line_ends=blocks[0].line_ends):
        return _picture(layout.view_grid, blocks[1])
    if layout.tiles and layout.grids == (layout.view_grid,) * (prod(layout.tiles) + 1):
        return whole_views(layout.view_grid, layout.tiles, full_last=True)
    raise ValueError(f"the {layout.span_views} views of an image here are not a full one and its crops")


def whole_views(grid: Grid, crops: Grid, *, full_last: bool = False) -> Views:
    """A full view and crops without padding, view after view."""
    size, number = prod(grid), prod(crops)
    order = [*range(1, number + 1), 0] if full_last else list(range(number + 1))
    cells: list[int] = []
    for view in order:
        if view == 0:
            cells += range(size)
            continue
        row, column = divmod(view - 1, crops[1])
        for line in range(row * grid[0], (row + 1) * grid[0]):
            start = line * crops[1] * grid[1] + column * grid[1]
            cells += range(start, start + grid[1])
    picture = (crops[0] * grid[0], crops[1] * grid[1])
    owners = tuple(view for view in order for _ in range(size))
    return Views(grid, crops, grid, picture, (0, 0), owners, tuple(cells))


def _picture(grid: Grid, block: Block) -> Views:
    """A full view, then all crops in one block, row by row."""
    owners = [0] * prod(grid)
    for row in range(block.offset[0], block.offset[0] + block.grid[0]):
        for column in range(block.offset[1], block.offset[1] + block.grid[1]):
            owners.append(1 + row // grid[0] * block.views[1] + column // grid[1])
    cells = (*range(prod(grid)), *range(prod(block.grid)))
    return Views(grid, block.views, grid, block.grid, block.offset, tuple(owners), cells)

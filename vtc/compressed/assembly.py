"""From the tokens of views to those of images: tiles put together, padding cut off, resampled, separators added.

Slices, constant matrix products and one constant gather, as :class:`vtc.facts.layout.ImageLayout` says.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from vtc.facts.layout import Block, Grid, ImageLayout
from vtc.resampling import bilinear

Product = Callable[[Tensor, Tensor], Tensor]


def assemble(values: Tensor, layout: ImageLayout, weigh: Product = torch.matmul) -> Tensor:
    """Values of the selectable tokens of each span.

    Parameters
    ----------
    values : Tensor of shape (spans * views, h * w) or (spans * views, h * w, D)
        Of all tokens of each view, in raster order; views of a span stand together.
    layout : ImageLayout
    weigh : callable
        How weights (m, n) of a resampling are applied to values (..., n, d).

    Returns
    -------
    Tensor of shape (spans, N) or (spans, N, D)
    """
    if layout.whole_views:
        return values
    flat = values.unsqueeze(-1) if values.dim() == 2 else values
    width = flat.shape[-1]
    views = flat.reshape(-1, layout.span_views, *layout.view_grid, width)
    parts, first = [], 0
    for block in layout.blocks:
        own = views[:, first : first + prod(block.views)]
        parts.append(_block(own, block, layout.view_grid, weigh).reshape(-1, prod(block.grid), width))
        first += prod(block.views)
    joined = torch.cat(parts, dim=1)
    return joined.squeeze(-1) if values.dim() == 2 else joined


def _block(views: Tensor, block: Block, grid: Grid, weigh: Product) -> Tensor:
    """Tokens (S, H, W, D) of a block, from its views (S, V, h, w, D)."""
    rows, columns = block.views
    picture = views.reshape(-1, rows, columns, *grid, views.shape[-1]).transpose(2, 3)
    picture = picture.reshape(-1, rows * grid[0], columns * grid[1], views.shape[-1])
    (top, left), (height, width) = block.offset, block.extent or block.grid
    picture = picture[:, top : top + height, left : left + width]
    return _resampled(picture, block.grid, weigh) if block.resized else picture


def _resampled(picture: Tensor, grid: Grid, weigh: Product) -> Tensor:
    """A picture (S, H, W, D) resampled bilinearly to (S, h, w, D): one matrix product for rows, one for columns."""
    _, height, width, depth = picture.shape
    rows = bilinear(height, grid[0]).float().to(picture)
    columns = bilinear(width, grid[1]).float().to(picture)
    by_row = weigh(rows, picture.reshape(-1, height, width * depth))
    return weigh(columns, by_row.reshape(-1, width, depth)).reshape(-1, *grid, depth)


def with_separators(features: Tensor, separator: Tensor, layout: ImageLayout) -> Tensor:
    """Projected tokens (S, N, E) with the separator (E) in its places: (S, layout.tokens, E)."""
    order = [layout.selectable] * layout.tokens
    for number, place in enumerate(layout.places):
        order[place] = number
    ends = separator.to(features).expand(features.shape[0], 1, -1)
    return torch.cat([features, ends], dim=1)[:, torch.tensor(order, device=features.device)]

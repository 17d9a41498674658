"""Which visual tokens of an image are padding, as its pixels say.

An image of another aspect ratio than the one that a model is made ready for gets bars around it. A token that shows
nothing but a bar says nothing about the image, so no selector keeps it while there is another. Bars are read off the
pixels, in the graph of the vision encoder itself: a bundle needs no further input for them.

A bar is a row of cells, from the top or the bottom of a view on, that is of the padding's colour throughout, or such a
column from the left or the right. Dark places inside an image are therefore none. Black bars that an image came with
count too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.compressed.assembly import assemble
from vtc.facts.layout import Grid
from vtc.inputs.pixels import PixelSpec
from vtc.models.base import VLMAdapter

HALF_A_LEVEL = 0.5
"""Pixels that differ by less are of one grey level."""
WHOLLY = 0.999
"""Share of padding from which on a token is padding."""


def padding_of(adapter: VLMAdapter, pixel_values: Tensor) -> Tensor | None:
    """Find the tokens that are padding.

    Parameters
    ----------
    adapter : VLMAdapter
    pixel_values : Tensor of shape (images, *shape of one image's pixels)

    Returns
    -------
    Tensor of shape (spans, N), bool, or None
        None where no image gets bars. A span that is all of one colour has no padding: there is nothing to prefer.
    """
    spec, layout = adapter.pixels, adapter.facts.layout
    if not spec.pads:
        return None
    blank = blank_cells(pixel_values, spec, layout.view_grid)
    padding = assemble(bars(blank).flatten(1), layout, weigh=_by_sums).reshape(-1, layout.selectable)
    # A resampled token is padding where all that it is made of is.
    return (padding > WHOLLY) & (padding.amin(dim=1, keepdim=True) <= WHOLLY)


def _by_sums(weights: Tensor, values: Tensor) -> Tensor:
    """The product of weights (m, n) and values (..., n, d), of which a plan counts no FLOPs."""
    return (weights.unsqueeze(-1) * values.unsqueeze(-3)).sum(dim=-2)


def blank_cells(pixel_values: Tensor, spec: PixelSpec, grid: Grid) -> Tensor:
    """Cells of views that are of the padding's colour throughout.

    Parameters
    ----------
    pixel_values : Tensor of shape (images, *spec.shape)
    spec : PixelSpec
    grid : (int, int)
        Rows and columns of a view's tokens.

    Returns
    -------
    Tensor of shape (views, rows, columns), float32
        1 for such a cell, else 0.
    """
    tones = zip(spec.background, spec.mean, spec.std, strict=True)
    colour = [(level * spec.rescale_factor - mean) / std for level, mean, std in tones]
    near = [HALF_A_LEVEL * spec.rescale_factor / abs(std) for std in spec.std]

    def blank(pixels: Tensor) -> Tensor:
        """1 for what is of the colour, within half a grey level, of pixels (n, 3, ...), else 0."""
        shape = (1, 3, *(1 for _ in pixels.shape[2:]))
        distance = (pixels - pixels.new_tensor(colour).reshape(shape)).abs()
        # No product with a number for each channel: OpenVINO takes one before a reshape for the scale of whole numbers.
        return (distance < pixels.new_tensor(near).reshape(shape)).float()

    if spec.patches:
        flat = pixel_values.reshape(-1, 3, spec.shape[1] // 3)
        return blank(flat).reshape(-1, *grid, spec.patches[2] ** 2 * spec.shape[1]).amin(dim=-1)
    rows, columns = spec.view[0] // grid[0], spec.view[1] // grid[1]
    views = pixel_values.reshape(-1, 3, *spec.view)[:, :, : grid[0] * rows, : grid[1] * columns]
    return blank(views).reshape(-1, 3, grid[0], rows, grid[1], columns).amin(dim=(1, 3, 5))


def bars(blank: Tensor) -> Tensor:
    """Cells (V, H, W) in whole rows or columns of blank cells (V, H, W) from an edge inward: 1, else 0; float32."""
    rows, columns = _from_edges(blank.amin(dim=2)), _from_edges(blank.amin(dim=1))
    return torch.maximum(rows.unsqueeze(2), columns.unsqueeze(1))


def _from_edges(blank: Tensor) -> Tensor:
    """Of lines (V, n) that are blank (1) or not (0), those with none that is not between them and an edge."""
    places = torch.arange(blank.shape[1], device=blank.device)
    up_to = (places <= places.unsqueeze(1)).float()
    seen = (1 - blank).unsqueeze(1)
    reached = torch.minimum((seen * up_to).amax(dim=2), (seen * up_to.T).amax(dim=2))
    return 1 - reached

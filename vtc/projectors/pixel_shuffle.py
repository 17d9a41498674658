"""Pixel shuffle, of InternVL, Idefics3, Llama 4 and others: the patches of a square laid end to end, then two layers.

Values of a patch stay together, patches of a square go row by row. At the start the first layer takes their mean.
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from vtc.facts.layout import Grid
from vtc.projectors.base import Own, TrainedProjector, two_layers
from vtc.resampling import windows
from vtc.visual_tokens import VisualTokens


class PixelShuffle(TrainedProjector):
    """One token for each `side` x `side` patches.

    Parameters
    ----------
    grid : (int, int)
    side : int
        Divides both.
    width, out : int
        Values of a token of the encoder and of the decoder.
    """

    def __init__(self, grid: Grid, side: int, width: int, out: int) -> None:
        super().__init__(grid, prod(grid) // side**2)
        self.side = side
        self.mlp = two_layers(width * side**2, out, out)

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        projected: Tensor = self.mlp(shuffled(tokens.features, self.grid, self.side))
        return projected


def shuffled(features: Tensor, grid: Grid, side: int) -> Tensor:
    """Tokens (B, H * W, C) as (B, H / side * W / side, side * side * C)."""
    return windows(features, grid, side).flatten(2)

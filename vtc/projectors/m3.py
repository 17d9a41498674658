"""M3, Matryoshka multimodal models (arXiv 2405.17430): means of squares of projected tokens; no parameters of its own.

The authors train encoder and decoder for several sizes; to an untrained model it is plain pooling. Their code takes any
number and silently gives another; here a number that no squares of the grid give is refused.
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from vtc.facts.layout import Grid
from vtc.projectors.base import Own, Projector
from vtc.resampling import windows
from vtc.visual_tokens import VisualTokens


class M3(Projector):
    """The mean of each `side` x `side` projected tokens.

    Parameters
    ----------
    grid : (int, int)
    side : int
        Divides both.
    """

    def __init__(self, grid: Grid, side: int) -> None:
        super().__init__(grid, prod(grid) // side**2)
        self.side = side

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        return windows(own(tokens.features), self.grid, self.side).mean(dim=2)

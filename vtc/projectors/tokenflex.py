"""TokenFLEX (arXiv 2504.03154): pooling to any square number of tokens, then a gated layer that all numbers share.

The paper names no repository. This follows the projector of the same group's published Ristretto-3B. Where a side does
not divide the grid's, tokens are first spread to the next multiple of it, between corners that stay; the pooling itself
never overlaps.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vtc.facts.layout import Grid
from vtc.projectors.base import Own, TrainedProjector
from vtc.recipe.projectors.tokenflex import EXPANSION
from vtc.resampling import Resampling, averages, bilinear
from vtc.visual_tokens import VisualTokens


class GatedLayer(nn.Module):
    """Norm, then g(silu(f1 x) * f2 x), all with biases."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(width, eps=1e-5)
        self.f1 = nn.Linear(width, EXPANSION * width)
        self.f2 = nn.Linear(width, EXPANSION * width)
        self.g = nn.Linear(EXPANSION * width, out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., out)."""
        normed = self.layernorm(x)
        gated: Tensor = self.g(F.silu(self.f1(normed)) * self.f2(normed))
        return gated


class TokenFlex(TrainedProjector):
    """Pooling to `side` x `side` tokens, then a gated layer.

    Parameters
    ----------
    grid : (int, int)
    side : int
    width, out : int
        Values of a token of the encoder and of the decoder.
    """

    def __init__(self, grid: Grid, side: int, width: int, out: int) -> None:
        super().__init__(grid, side * side)
        self.pooling = Resampling(_pooling(grid[0], side), _pooling(grid[1], side))
        self.mlp = GatedLayer(width, out)

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        projected: Tensor = self.mlp(self.pooling(tokens.features))
        return projected


def _pooling(size: int, side: int) -> Tensor:
    spread = -(-size // side) * side
    pooling = averages(spread, side)
    return pooling if spread == size else pooling @ bilinear(size, spread, corners=True)

"""DeCo (arXiv 2405.20985): average pooling on the encoder's grid, then LLaVA's two layers on what is left.

The bar that any other projector has to beat at equal training: the decoder abstracts, the projector only compresses.
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from vtc.facts.layout import Grid
from vtc.projectors.base import Own, TrainedProjector, two_layers
from vtc.resampling import pooling
from vtc.visual_tokens import VisualTokens


class Deco(TrainedProjector):
    """Adaptive average pooling to a smaller grid, then linear, GELU, linear.

    Parameters
    ----------
    grid, keep_grid : (int, int)
        Rows and columns of tokens that come in and go out.
    width, out : int
        Values of a token of the encoder and of the decoder.
    """

    def __init__(self, grid: Grid, keep_grid: Grid, width: int, out: int) -> None:
        super().__init__(grid, prod(keep_grid))
        self.pooling = pooling(grid, keep_grid)
        self.mlp_projector = two_layers(width, out, out)

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        pooled = self.pooling(tokens.features)
        projected: Tensor = self.mlp_projector(pooled)
        return projected

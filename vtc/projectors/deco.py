"""DeCo (arXiv 2405.20985): average pooling on the encoder's grid, then LLaVA's two layers on what is left.

The bar that any other projector has to beat at equal training: the decoder abstracts, the projector only compresses.
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from vtc.facts.layout import Grid
from vtc.projectors.base import Own, TrainedProjector, two_layers
from vtc.projectors.resampling import averages, resample
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

    rows: Tensor
    columns: Tensor

    def __init__(self, grid: Grid, keep_grid: Grid, width: int, out: int) -> None:
        super().__init__(grid, prod(keep_grid))
        self.register_buffer("rows", averages(grid[0], keep_grid[0]).float(), persistent=False)
        self.register_buffer("columns", averages(grid[1], keep_grid[1]).float(), persistent=False)
        self.mlp_projector = two_layers(width, out, out)

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        pooled = resample(tokens.features, self.grid, self.rows, self.columns)
        projected: Tensor = self.mlp_projector(pooled)
        return projected

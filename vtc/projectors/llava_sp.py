"""LLaVA-SP (arXiv 2507.00505), its pooling version: tokens of the whole image before all patches. It adds; see `keep`.

A picture of the image is pooled to several sides, and a convolution as large as each makes one token of it. With 24
rows and columns there are six, made by 765 million weights at CLIP-L's width: the largest projector here.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtc.facts.layout import Grid
from vtc.projectors.base import Own, TrainedProjector
from vtc.projectors.resampling import averages, resample
from vtc.visual_tokens import VisualTokens

STEP = 4
"""Sides that an image is pooled to are multiples of this."""


class LlavaSp(TrainedProjector):
    """A token for each side, then the patches by the model's own projector.

    Parameters
    ----------
    grid : (int, int)
        A square.
    width, inner, out : int
        Values of a token of the encoder, of what a convolution gives, and of a token of the decoder.
    """

    def __init__(self, grid: Grid, width: int, inner: int, out: int) -> None:
        sides = sides_of(grid)
        super().__init__(grid, len(sides) + prod(grid))
        self.sides = sides
        for side in sides:
            self.register_buffer(f"pooling_{side}", averages(grid[0], side).float(), persistent=False)
            kernel = nn.Conv2d(width, inner, side, bias=False)
            # Named as in the authors' checkpoints: pooling and convolution are a sequence, but for the whole grid.
            self.add_module(f"conv_{side}", kernel if side == grid[0] else nn.Sequential(nn.Identity(), kernel))
        self.conv_linear = nn.Sequential(nn.GELU(), nn.Linear(inner, out, bias=False))

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        return torch.cat([self.whole(tokens.features), own(tokens.features)], dim=1)

    def whole(self, features: Tensor) -> Tensor:
        """The tokens of the whole image, (B, sides, out)."""
        found = []
        for side in self.sides:
            pooling = self.get_buffer(f"pooling_{side}")
            pooled = features if side == self.grid[0] else resample(features, self.grid, pooling, pooling)
            # A convolution as large as its picture is one product.
            kernel = self._kernel(side).permute(0, 2, 3, 1).flatten(1)
            found.append(F.linear(pooled.flatten(1), kernel))
        added: Tensor = self.conv_linear(torch.stack(found, dim=1))
        return added

    def _kernel(self, side: int) -> Tensor:
        module = self.get_submodule(f"conv_{side}")
        kernel = (
            module if isinstance(module, nn.Conv2d) else next(m for m in module.modules() if isinstance(m, nn.Conv2d))
        )
        return kernel.weight


def sides_of(grid: Grid) -> tuple[int, ...]:
    """Sides that a grid is pooled to, its own the last."""
    return tuple(range(STEP, grid[0] + 1, STEP))

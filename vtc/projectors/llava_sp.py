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
from vtc.recipe.projectors.llava_sp import sides_of
from vtc.resampling import pooling
from vtc.visual_tokens import VisualTokens


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
            kernel = nn.Conv2d(width, inner, side, bias=False)
            # Named as in the authors' checkpoints: pooling and convolution are a sequence, but for the whole grid.
            whole = side == grid[0]
            self.add_module(f"conv_{side}", kernel if whole else nn.Sequential(pooling(grid, (side, side)), kernel))
        self.conv_linear = nn.Sequential(nn.GELU(), nn.Linear(inner, out, bias=False))

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        return torch.cat([self.whole(tokens.features), own(tokens.features)], dim=1)

    def whole(self, features: Tensor) -> Tensor:
        """The tokens of the whole image, (B, sides, out)."""
        found = []
        for side in self.sides:
            kernel, pooled = self.get_submodule(f"conv_{side}"), features
            if isinstance(kernel, nn.Sequential):
                pooled, kernel = kernel[0](features), kernel[1]
            if not isinstance(kernel, nn.Conv2d):
                raise AssertionError("a convolution makes the token")
            # As large as its picture, it is one product.
            found.append(F.linear(pooled.flatten(1), kernel.weight.permute(0, 2, 3, 1).flatten(1)))
        added: Tensor = self.conv_linear(torch.stack(found, dim=1))
        return added

"""LDPv2, of MobileVLM V2 (arXiv 2402.03766): two layers on all tokens, pooling, and a small convolution for places."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.projectors.base import Own, TrainedProjector, two_layers
from vtc.resampling import pooling
from vtc.visual_tokens import VisualTokens


class _Layers(nn.Module):
    """Named as in the authors' checkpoints: ``mlp.mlp``."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.mlp = two_layers(width, out, out)


class _Places(nn.Module):
    """Named as in the authors' checkpoints: ``peg.peg``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.peg = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width))


class LdpV2(TrainedProjector):
    """Linear, GELU, linear; adaptive average pooling; and a depthwise 3 x 3 convolution that is added.

    Parameters
    ----------
    grid, keep_grid : (int, int)
    width, out : int
        Values of a token of the encoder and of the decoder.
    """

    def __init__(self, grid: Grid, keep_grid: Grid, width: int, out: int) -> None:
        super().__init__(grid, prod(keep_grid))
        self.keep_grid = keep_grid
        self.pooling = pooling(grid, keep_grid)
        self.mlp = _Layers(width, out)
        self.peg = _Places(out)

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        pooled: Tensor = self.pooling(self.mlp.mlp(tokens.features))
        picture = pooled.transpose(1, 2).reshape(len(pooled), -1, *self.keep_grid)
        around: Tensor = self.peg.peg(picture)
        return pooled + around.flatten(2).transpose(1, 2)

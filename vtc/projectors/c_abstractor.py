"""Honeybee's C-Abstractor (arXiv 2312.06742): convolutions, adaptive average pooling, convolutions, two layers.

Blocks are RegNet's bottlenecks with squeeze and excitation. The squeeze takes a mean over the whole image, so every
token knows of all. Channels are normed as layers are. The authors add positions to their input in place; here it is
left alone.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtc.facts.layout import Grid
from vtc.projectors.base import Own, TrainedProjector
from vtc.recipe.projectors.c_abstractor import SQUEEZE
from vtc.resampling import pooling
from vtc.visual_tokens import VisualTokens

EPSILON = 1e-5


class ChannelNorm(nn.Module):
    """A layer norm over the channels of (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Without moving the channels to the end and back."""
        centred = x - x.mean(dim=1, keepdim=True)
        normed = centred * (centred.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class NormedConv(nn.Module):
    """A convolution without bias, and a norm."""

    def __init__(self, width: int, out: int, side: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, side, padding=side // 2, groups=groups, bias=False)
        self.bn = ChannelNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.conv(x))
        return normed


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole image holds."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        whole = x.mean(dim=(2, 3), keepdim=True)
        gates: Tensor = self.fc2(F.silu(self.fc1(whole)))
        return x * gates.sigmoid()


class Bottleneck(nn.Module):
    """1 x 1, depthwise 3 x 3, squeeze and excitation, 1 x 1, each with a norm, around a shortcut."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1 = NormedConv(width, out)
        self.conv2 = NormedConv(out, out, side=3, groups=out)
        self.se = SqueezeExcite(out, round(SQUEEZE * width))
        self.conv3 = NormedConv(out, out)
        self.downsample = NormedConv(width, out) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.silu(self.conv2(F.silu(self.conv1(x))))
        return F.silu(self.conv3(self.se(inner)) + self.downsample(x))


class CAbstractor(TrainedProjector):
    """Convolutions before and after pooling.

    Parameters
    ----------
    grid, keep_grid : (int, int)
    width, hidden, out : int
        Values of a token of the encoder, channels of the convolutions, and values of a token of the decoder.
    depth : int
        Blocks before the pooling, and as many after it.
    readout : int
        Linear layers at the end.
    """

    def __init__(
        self, grid: Grid, keep_grid: Grid, width: int, hidden: int, out: int, depth: int = 3, readout: int = 2
    ) -> None:
        super().__init__(grid, prod(keep_grid))
        self.keep_grid = keep_grid
        self.pooling = pooling(grid, keep_grid)
        self.pos_emb = nn.Parameter(0.02 * torch.randn(1, prod(grid), width))
        # The pooling between them is constant; it has a place so that names are those of the authors' checkpoints.
        self.net = nn.Sequential(_blocks(width, hidden, depth), nn.Identity(), _blocks(hidden, hidden, depth))
        layers: list[nn.Module] = [nn.Linear(hidden, out)]
        for _ in range(readout - 1):
            layers += [nn.SiLU(), nn.Linear(out, out)]
        self.readout = nn.Sequential(*layers)

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        fine = _picture(tokens.features + self.pos_emb, self.grid)
        pooled = self.pooling(_tokens(self.net[0](fine)))
        coarse: Tensor = self.net[2](_picture(pooled, self.keep_grid))
        projected: Tensor = self.readout(_tokens(coarse))
        return projected


def _blocks(width: int, hidden: int, depth: int) -> nn.Sequential:
    blocks = nn.Sequential()
    for number in range(depth):
        blocks.add_module(f"b{number + 1}", Bottleneck(width if number == 0 else hidden, hidden))
    return blocks


def _picture(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, H * W, C) as (B, C, H, W)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


def _tokens(picture: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H * W, C)."""
    return picture.flatten(2).transpose(1, 2)

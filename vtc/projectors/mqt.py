"""Matryoshka Query Transformer (arXiv 2405.19315): learned queries of which any first few are a budget of their own.

In the authors' code keys are positions alone, so what each query attends to is the same for every image: a learned
pooling, one for each head. It is folded to constants in a graph that is exported.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.projectors.attention import CrossAttention
from vtc.projectors.base import Own, TrainedProjector
from vtc.recipe.projectors.mqt import QUERIES
from vtc.resampling import Resampling, bicubic
from vtc.visual_tokens import VisualTokens

SIDE = isqrt(QUERIES)
"""The queries stand on a grid of so many rows and columns."""
EPSILON = 1e-6


class Mqt(TrainedProjector):
    """The first `keep` of 256 queries.

    Parameters
    ----------
    grid : (int, int)
    keep : int
        256 at most.
    width, heads, out : int
        Values of a token of the encoder, heads of its attention, and values of a token of the decoder.
    """

    pos_embed: Tensor
    places: Tensor

    def __init__(self, grid: Grid, keep: int, width: int, heads: int, out: int) -> None:
        super().__init__(grid, keep)
        table = sine_positions(SIDE, width).half().float()  # the authors keep it in half precision
        self.register_buffer("pos_embed", table)
        places = Resampling(*(bicubic(SIDE, size) for size in grid))(table[None])[0]
        self.register_buffer("places", places, persistent=False)
        self.query = nn.Parameter(0.02 * torch.randn(QUERIES, width))
        self.attn = CrossAttention(width, heads)
        self.ln_q, self.ln_k, self.ln_v = (nn.LayerNorm(width, eps=EPSILON) for _ in range(3))
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, out))

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        query = self.ln_q(self.query[: self.keep] + self.pos_embed[: self.keep])
        seen: Tensor = self.attn(query, self.ln_k(self.places), self.ln_v(tokens.features))
        return torch.matmul(seen, self.proj)


def sine_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of columns, then of rows, of a square grid: (side * side, width)."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rates = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = [place.reshape(-1, 1) * rates for place in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()

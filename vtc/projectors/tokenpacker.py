"""TokenPacker (arXiv 2407.02392): each token of a smaller grid looks at the patches of its own cell.

A query is the grid shrunk bilinearly; keys and values come from several encoder layers side by side. The authors' code
adds no query to what is seen, though the paper speaks of an update.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.projectors.attention import CrossAttention
from vtc.projectors.base import Own, TrainedProjector, two_layers
from vtc.projectors.resampling import bilinear, resample, windows
from vtc.recipe.needs import Needs, Reading
from vtc.visual_tokens import VisualTokens

EPSILON = 1e-6


class TokenPacker(TrainedProjector):
    """One token for each `side` x `side` patches.

    Parameters
    ----------
    grid : (int, int)
    side : int
        Divides both.
    width, heads, out : int
        Values of a token of the encoder, heads of the attention, and values of a token of the decoder.
    layers : tuple of int
        Encoder layers whose inputs are read, side by side.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, grid: Grid, side: int, width: int, heads: int, out: int, layers: tuple[int, ...]) -> None:
        coarse = grid[0] // side, grid[1] // side
        super().__init__(grid, prod(coarse))
        self.side, self.layers = side, layers
        self.register_buffer("rows", bilinear(grid[0], coarse[0]).float(), persistent=False)
        self.register_buffer("columns", bilinear(grid[1], coarse[1]).float(), persistent=False)
        read = width * len(layers)
        self.q_proj_1 = nn.Linear(width, width, bias=False)
        self.k_proj_1 = two_layers(read, width, width)
        self.v_proj_1 = two_layers(read, width, width)
        self.ln_q_1, self.ln_k_1, self.ln_v_1 = (nn.LayerNorm(width, eps=EPSILON) for _ in range(3))
        self.clip_attn = CrossAttention(width, heads)
        self.mlp = two_layers(width, out, out)

    @property
    def needs(self) -> Needs:
        return Needs(frozenset(Reading("hidden_states", layer) for layer in self.layers))

    @property
    def made_for(self) -> Mapping[str, str]:
        return {**super().made_for, "layers": ",".join(map(str, self.layers))}

    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        several = side_by_side(tokens, self.layers)
        query = self.ln_q_1(self.q_proj_1(resample(tokens.features, self.grid, self.rows, self.columns)))
        key, value = self.ln_k_1(self.k_proj_1(several)), self.ln_v_1(self.v_proj_1(several))
        cells = (windows(part, self.grid, self.side) for part in (key, value))
        seen: Tensor = self.clip_attn(query.unsqueeze(2), *cells).squeeze(2)
        projected: Tensor = self.mlp(seen)
        return projected


def side_by_side(tokens: VisualTokens, layers: tuple[int, ...]) -> Tensor:
    """Inputs (B, N, D) of encoder layers as one tensor (B, N, layers * D)."""
    return torch.cat([tokens.readings[Reading("hidden_states", layer)] for layer in layers], dim=-1)

"""What projectors share whose every token sees one square of patches, in several encoder layers."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from vtc.facts.layout import Grid
from vtc.projectors.attention import CrossAttention
from vtc.projectors.base import TrainedProjector
from vtc.recipe.needs import Needs, Reading
from vtc.resampling import windows
from vtc.visual_tokens import VisualTokens


class SeesSquares(TrainedProjector):
    """One token for each `side` x `side` patches.

    Parameters
    ----------
    grid : (int, int)
    side : int
        Divides both.
    width, heads : int
        Values of a token of the encoder, and heads of the attention.
    layers : tuple of int
        Encoder layers whose inputs are read, side by side.
    """

    def __init__(self, grid: Grid, side: int, width: int, heads: int, layers: tuple[int, ...]) -> None:
        super().__init__(grid, prod(grid) // side**2)
        self.side, self.layers = side, layers
        self.clip_attn = CrossAttention(width, heads)

    @property
    def needs(self) -> Needs:
        return Needs(frozenset(Reading("hidden_states", layer) for layer in self.layers))

    @property
    def made_for(self) -> Mapping[str, str]:
        return {**super().made_for, "layers": ",".join(map(str, self.layers))}

    def read(self, tokens: VisualTokens) -> Tensor:
        """Inputs (B, N, D) of the encoder layers as one tensor (B, N, layers * D)."""
        several = [tokens.readings[Reading("hidden_states", layer)] for layer in self.layers]
        return torch.cat(several, dim=-1).to(tokens.features)

    def see(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What each query (B, keep, D) sees of its own square's keys and values (B, N, D)."""
        squares = (windows(part, self.grid, self.side) for part in (key, value))
        seen: Tensor = self.clip_attn(query.unsqueeze(2), *squares)
        return seen.squeeze(2)

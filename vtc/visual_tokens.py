"""The visual tokens of a batch of images on their way from the encoder to the projector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens, and what stages may ask about them.

    Attributes
    ----------
    features : Tensor of shape (B, N, D)
        Encoder outputs before the projector.
    indices : Tensor of shape (B, N), int64
        Ascending places of the tokens on the encoder's grid (on a smaller grid, once a frequency filter has made one).
    grid : (int, int) or None
        Rows and columns, N their product; None once tokens have been pruned.
    cls_attention : mapping of layer to Tensor of shape (B, N)
        Attention of the CLS token to these tokens, mean over heads, for the encoder layers that a selector asked for.
    """

    features: Tensor
    indices: Tensor
    grid: tuple[int, int] | None
    cls_attention: Mapping[int, Tensor] = field(default_factory=dict)

    def keep(self, chosen: Tensor) -> VisualTokens:
        """The tokens at positions `chosen` (B, K) among these."""
        return VisualTokens(
            features=gather_tokens(self.features, chosen),
            indices=torch.gather(self.indices, 1, chosen),
            grid=None,
            cls_attention={layer: torch.gather(row, 1, chosen) for layer, row in self.cls_attention.items()},
        )


def on_grid(features: Tensor, grid: tuple[int, int], cls_attention: Mapping[int, Tensor] | None = None) -> VisualTokens:
    """All tokens (B, H * W, D) of a grid in raster order."""
    places = torch.arange(grid[0] * grid[1], device=features.device).expand(features.shape[0], -1)
    return VisualTokens(features, places, grid, cls_attention or {})


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens (B, K, D) of (B, N, D) at indices (B, K)."""
    return torch.gather(tokens, 1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

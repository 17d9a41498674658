"""Prune: a selector keeps K of the visual tokens between the encoder and the projector; the others leave."""

from __future__ import annotations

from torch import nn

from vtc.selectors.base import Selector
from vtc.visual_tokens import VisualTokens


class Prune(nn.Module):
    """Keep exactly `keep` tokens of each image, in raster order."""

    def __init__(self, selector: Selector, keep: int) -> None:
        super().__init__()
        self.selector = selector
        self.keep = keep

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens that the selector keeps."""
        return self.selector.prune(tokens, self.keep)

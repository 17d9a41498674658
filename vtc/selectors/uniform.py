"""Uniform stride: every (N / keep)-th token in raster order, the simplest cover of the image."""

from __future__ import annotations

from torch import Tensor

from vtc.recipe.selectors.uniform import UniformEntry
from vtc.selectors.base import Selector, evenly
from vtc.visual_tokens import VisualTokens


class Uniform(Selector[UniformEntry]):
    """Token ``floor((i + 1/2) N / keep)`` for i = 0 .. keep - 1."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        return evenly(tokens.features, keep, tokens.padding)

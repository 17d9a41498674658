"""Uniform stride: every (N / keep)-th token in raster order, the simplest cover of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.uniform import UniformEntry
from vtc.selectors.base import Selector
from vtc.visual_tokens import VisualTokens


class Uniform(Selector[UniformEntry]):
    """Token ``floor((i + 1/2) N / keep)`` for i = 0 .. keep - 1."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        batch, count, _ = tokens.features.shape
        chosen = [(2 * i + 1) * count // (2 * keep) for i in range(keep)]
        return torch.tensor(chosen, device=tokens.features.device).expand(batch, keep)

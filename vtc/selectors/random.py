"""Random choice: the floor that every selector has to beat.

One permutation of the grid is drawn from the seed and its first `keep` places are kept in every image, which makes the
choice a constant of the exported graph. Average over seeds to judge it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vtc.recipe.selectors.random import RandomEntry
from vtc.selectors.base import Selector, ascending, padding_last, top_k
from vtc.visual_tokens import VisualTokens


class Random(Selector[RandomEntry]):
    """The first `keep` places of a seeded permutation of the grid."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        batch, count, _ = tokens.features.shape
        drawn = np.random.default_rng(self.entry.seed).permutation(count)
        if tokens.padding is not None:
            score = torch.tensor((-np.argsort(drawn)).tolist(), device=tokens.features.device).float().expand(batch, -1)
            return ascending(top_k(padding_last(score, tokens.padding), keep))
        chosen = np.sort(drawn[:keep])
        return torch.tensor(chosen.tolist(), device=tokens.features.device).expand(batch, keep)

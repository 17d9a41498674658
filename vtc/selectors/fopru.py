"""FoPru: keep the patches that the encoder's patches attend to (Jiang et al. 2024, arXiv 2411.14164).

The significance of a patch is the mean of its column (what it receives) or of its row (what it gives) in the attention
of patches to patches, mean over heads: for each image whichever varies more over the patches. ``rank`` keeps the
highest; ``row`` keeps whole rows of the image, those with the highest sums first, and of the row in which the budget
ends the highest patches. The authors' code is not public: the choice by variance follows an unofficial implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.fopru import FoPruEntry
from vtc.selectors.base import Scorer, ascending, padding_last, top_k
from vtc.selectors.ranking import ranks
from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import VisualTokens


class FoPru(Scorer[FoPruEntry]):
    """Top-k of the significance, by patch or by whole rows."""

    def score(self, tokens: VisualTokens) -> Tensor:
        attention = self.read(tokens, "attention").float()
        received = read_at(attention.mean(dim=1), first_equal(attention.transpose(1, 2)))
        given = read_at(attention.mean(dim=2), first_equal(attention))
        varies_more = received.var(dim=-1, keepdim=True) >= given.var(dim=-1, keepdim=True)
        return torch.where(varies_more, received, given)

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        score = self.score(tokens)
        if self.entry.strategy == "row" and len(tokens.grids) == 1:
            score = _by_rows(score, tokens.grids[0])
        return ascending(top_k(padding_last(score, tokens.padding), keep))


def _by_rows(score: Tensor, grid: tuple[int, int]) -> Tensor:
    """A score (B, N) that ranks tokens by the sum of their row and, within a row, by `score` (B, N)."""
    rows, columns = grid
    row = ranks(score.reshape(-1, rows, columns).sum(dim=-1))
    return -(row.repeat_interleave(columns, dim=1) * (rows * columns) + ranks(score))

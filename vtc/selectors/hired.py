"""HiRED: give each view of an image a budget by what the full view looks at, and fill it by CLS attention.

The image is encoded as one full view and its crops (HiRED, arXiv 2408.10945). The full view gets int(share * keep)
tokens. Of its patches, the int((1 - share) * n) that an early layer's CLS token looks at most vote for the crop that
they lie in, and crops get the rest of the budget in proportion to their votes. In each view, tokens are kept by the CLS
attention of a late layer. What rounding budgets down leaves goes to the largest remainders, so that exactly the budget
is kept; the original loses it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vtc.selectors.base import Needs, Selector, taken, top_k
from vtc.selectors.views import apportion, by_middle, region, totals, view_size
from vtc.visual_tokens import Reading, VisualTokens


class HiRED(Selector):
    """Budgets by an early layer, tokens by a late one (0-based).

    Parameters
    ----------
    first_layer, last_layer : int
        Layers whose CLS attention votes and ranks; the authors take the first, and the one whose output goes on.
    views : (int, int) or None
        Rows and columns of crops behind the full view; None for a single view, of which the best tokens are kept.
    share : float
        The full view's share of the budget, and what is left of its patches does not vote.
    grid : (int, int) or None
        Rows and columns of patches in one view; None for a square.
    as_published : bool
        Count votes as the authors' code does, which takes runs of n / crops patches in raster order for the crops,
        instead of the regions that crops cover.
    """

    def __init__(
        self,
        first_layer: int,
        last_layer: int,
        views: tuple[int, int] | None = None,
        share: float = 0.5,
        grid: tuple[int, int] | None = None,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        self.first_layer = first_layer
        self.last_layer = last_layer
        self.views = views
        self.share = share
        self.grid = grid
        self.as_published = as_published

    @property
    def needs(self) -> Needs:
        layers = {self.last_layer} if self.views is None else {self.first_layer, self.last_layer}
        return Needs(frozenset(Reading("cls_attention", layer) for layer in layers))

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        last = tokens.read("cls_attention", self.last_layer).float()
        size = view_size(last.shape[1], self.views)
        if self.views is None:
            budgets = torch.full_like(last[:, :1], keep)
        else:
            first = tokens.read("cls_attention", self.first_layer).float()
            budgets = self.budgets(first[:, :size], keep, self.views)
        return apportion(last.reshape(last.shape[0], -1, size), budgets, keep)

    def budgets(self, attention: Tensor, keep: int, views: tuple[int, int]) -> Tensor:
        """Tokens, in fractions, for the full view and each crop, (B, 1 + crops), by the former's attention (B, n)."""
        size = attention.shape[1]
        crops = views[0] * views[1]
        full = min(int(keep * self.share), size)
        voters = max(1, int(size * (1 - self.share)))
        votes = totals(taken(top_k(attention, voters), size), self._region(size, views), crops)
        return torch.cat([torch.full_like(votes[:, :1], full), votes * (keep - full) / voters], dim=1)

    def _region(self, size: int, views: tuple[int, int]) -> list[int]:
        if self.as_published:
            return by_middle(size, views[0] * views[1])
        height, width = self.grid or (math.isqrt(size), math.isqrt(size))
        if height * width != size:
            raise ValueError(f"a view of {size} visual tokens has no grid of {height} x {width}")
        return region(by_middle(height, views[0]), by_middle(width, views[1]), views)

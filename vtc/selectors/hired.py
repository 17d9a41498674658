"""HiRED: give each view of an image a budget by what the full view looks at, and fill it by CLS attention.

The image is encoded as one full view and its crops (HiRED, arXiv 2408.10945). The full view gets int(share * keep)
tokens. Of its patches, the int((1 - share) * n) that an early layer's CLS token looks at most vote for the crop that
shows what they do, and crops get the rest of the budget in proportion to their votes. In each view, tokens are kept by
the CLS attention of a late layer. What rounding budgets down leaves goes to the largest remainders, and what a crop
cannot use, having lost tokens to padding, to the others, so that exactly the budget is kept; the original loses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.facts.views import Views
from vtc.selectors.base import Needs, Selector, ascending, kept_mask, top_k
from vtc.selectors.views import apportion, totals, view_tokens
from vtc.visual_tokens import Reading, VisualTokens


class HiRED(Selector):
    """Budgets by an early layer, tokens by a late one (0-based).

    Parameters
    ----------
    first_layer, last_layer : int
        Layers whose CLS attention votes and ranks; the authors take the first, and the one whose output goes on.
    views : Views or None
        None for a single view, of which the best tokens are kept.
    share : float
        The full view's share of the budget, and what is left of its patches does not vote.
    as_published : bool
        Count votes as the authors' code does, which takes runs of n / crops patches in raster order for the crops,
        instead of the regions that crops show.
    """

    def __init__(
        self,
        first_layer: int,
        last_layer: int,
        views: Views | None = None,
        share: float = 0.5,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        self.first_layer = first_layer
        self.last_layer = last_layer
        self.views = views
        self.share = share
        self.as_published = as_published

    @property
    def needs(self) -> Needs:
        layers = {self.last_layer} if self.views is None else {self.first_layer, self.last_layer}
        return Needs(frozenset(Reading("cls_attention", layer) for layer in layers))

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        last = tokens.read("cls_attention", self.last_layer).float()
        if self.views is None:
            return ascending(top_k(last, keep))
        first = tokens.read("cls_attention", self.first_layer).float()
        budgets = self.budgets(view_tokens(first, self.views, 0), keep, self.views)
        return apportion(last, self.views, budgets, keep)

    def budgets(self, attention: Tensor, keep: int, views: Views) -> Tensor:
        """Tokens, in fractions, for the full view and each crop, (B, 1 + crops), by the former's attention (B, n)."""
        size = attention.shape[1]
        full = min(int(keep * self.share), size)
        voters = max(1, int(size * (1 - self.share)))
        regions = views.regions
        if self.as_published:
            regions = [(2 * place + 1) * views.number // (2 * size) for place in range(size)]
        votes = totals(kept_mask(top_k(attention, voters), size), regions, views.number)
        return torch.cat([torch.full_like(votes[:, :1], full), votes * (keep - full) / voters], dim=1)

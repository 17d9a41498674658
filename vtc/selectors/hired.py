"""HiRED: give each view of an image a budget by what the full view looks at, and fill it by CLS attention.

The image is encoded as one full view and its crops (HiRED, arXiv 2408.10945). The full view gets int(share * keep)
tokens. Of its patches, the int((1 - share) * n) that an early layer's CLS token looks at most vote for the crop that
shows what they do, and crops get the rest of the budget in proportion to their votes. In each view, tokens are kept by
the CLS attention of a late layer. These are the first layer and the one whose output goes on. What rounding budgets
down leaves goes to the largest remainders, and what a crop cannot use, having lost tokens to padding, to the others, so
that exactly the budget is kept; the original loses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.facts.views import Views
from vtc.recipe.selectors.hired import HiREDEntry
from vtc.selectors.base import ascending, kept_mask, padding_last, top_k
from vtc.selectors.views import ViewsSelector, apportion, totals, view_tokens
from vtc.visual_tokens import VisualTokens


class HiRED(ViewsSelector[HiREDEntry]):
    """Budgets by an early layer, tokens by a late one."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        last = self.read(tokens, "last").float()
        if self.views is None:
            return ascending(top_k(padding_last(last, tokens.padding), keep))
        first = self.read(tokens, "first").float()
        budgets = self.budgets(view_tokens(first, self.views, 0), keep, self.views)
        return apportion(last, self.views, budgets, keep, tokens.padding)

    def budgets(self, attention: Tensor, keep: int, views: Views) -> Tensor:
        """Tokens, in fractions, for the full view and each crop, (B, 1 + crops), by the former's attention (B, n)."""
        size = attention.shape[1]
        full = min(int(keep * self.entry.share), size)
        voters = max(1, int(size * (1 - self.entry.share)))
        regions = views.regions
        if self.entry.as_published:
            regions = [(2 * place + 1) * views.number // (2 * size) for place in range(size)]
        votes = totals(kept_mask(top_k(attention, voters), size), regions, views.number)
        return torch.cat([torch.full_like(votes[:, :1], full), votes * (keep - full) / voters], dim=1)

"""GlobalCom2: let the full view guide how much, and what, each crop keeps (arXiv 2501.05179).

The image is encoded as one full view, the thumbnail, and m crops. Scores s are the CLS token's logits, in the encoder's
last layer, before the softmax, mean over heads. With R = keep / N, a view of n tokens gets n * R of them if it is the
thumbnail, by s, and n * R * (1 + softmax(S / temperature)_j - 1 / m) if it is crop j, S_j being the sum of the
thumbnail's s over the region that the crop shows; its tokens are ranked by its own s plus the thumbnail's, enlarged
bilinearly to the patches of all crops, each scaled to unit length within the crop. Patches of padding are left out of
all of this. What rounding budgets down leaves goes to the largest remainders, and what a view cannot use to the others,
so that exactly the budget is kept; the original loses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.facts.views import Views
from vtc.recipe.selectors.globalcom2 import GlobalCom2Entry
from vtc.selectors.base import ascending, padding_last, top_k
from vtc.selectors.views import ViewsSelector, apportion, totals, view_tokens
from vtc.visual_tokens import VisualTokens


class GlobalCom2(ViewsSelector[GlobalCom2Entry]):
    """Budgets and ranks by the thumbnail's CLS logits and the crops' own."""

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        logits = self.read(tokens, "scores").float()
        views = self.views
        if views is None:
            return ascending(top_k(padding_last(logits, tokens.padding), keep))
        thumbnail = view_tokens(logits, views, 0)
        sizes = [len(views.tokens_of(view)) for view in range(1 + views.number)]
        factors = self.factors(thumbnail, views)
        budgets = torch.cat([torch.ones_like(factors[:, :1]), factors], dim=1) * (keep / logits.shape[1])
        budgets = budgets * torch.tensor(sizes, device=budgets.device)
        return apportion(self.scores(logits, thumbnail, views), views, budgets, keep, tokens.padding)

    def scores(self, logits: Tensor, thumbnail: Tensor, views: Views) -> Tensor:
        """What ranks all tokens (B, N) within their own view, by their logits (B, N) and the thumbnail's (B, n)."""
        enlarged = enlarge(thumbnail, views.grid, views.picture)
        parts, order = [thumbnail], views.tokens_of(0)
        for crop in range(1, 1 + views.number):
            own = views.tokens_of(crop)
            order += own
            cells = torch.tensor([views.cells[place] for place in own], dtype=torch.long, device=logits.device)
            parts.append(combine(view_tokens(logits, views, crop), enlarged.index_select(1, cells)))
        back = sorted(range(len(order)), key=lambda number: order[number])
        return torch.cat(parts, dim=1).index_select(1, torch.tensor(back, device=logits.device))

    def factors(self, thumbnail: Tensor, views: Views) -> Tensor:
        """What the share R of each crop is multiplied by, (B, crops), given the thumbnail's scores (B, n)."""
        regions = _equal_regions(views.grid, views.crops) if self.entry.as_published else views.regions
        shares = torch.softmax(totals(thumbnail, regions, views.number) / self.entry.temperature, dim=1)
        return 1 + shares - 1 / views.number


def enlarge(thumbnail: Tensor, grid: Grid, picture: Grid) -> Tensor:
    """Scores (B, h * w) of the full view, interpolated for the patches of all crops together: (B, H * W)."""
    image = thumbnail.reshape(-1, 1, *grid)
    return nn.functional.interpolate(image, picture, mode="bilinear", align_corners=False).flatten(1)


def combine(own: Tensor, enlarged: Tensor) -> Tensor:
    """Sum of both scores (..., n), each scaled to unit length."""
    return nn.functional.normalize(own, dim=-1) + nn.functional.normalize(enlarged, dim=-1)


def _equal_regions(grid: Grid, crops: Grid) -> list[int]:
    """The crop of each patch, in runs of size // crops rows or columns, the last one longer."""
    rows, columns = (
        [min(place // max(1, size // parts), parts - 1) for place in range(size)]
        for size, parts in zip(grid, crops, strict=True)
    )
    return [row * crops[1] + column for row in rows for column in columns]

"""PruMerge: keep what the CLS token looks at and blend the rest into it (LLaVA-PruMerge, arXiv 2403.15388).

Tokens are kept by the attention of the CLS token, taken as one head of full width, in the encoder's last layer, which
follows the one whose output goes on. Each kept token becomes the mean, weighted by that attention, of itself and the 32
dropped tokens whose keys have the highest cosine with its own. One more token, the weighted mean of all dropped ones,
stands at the best of these, unless the budget is one token. PruMerge+ spends only a quarter of the budget by attention
and spreads the rest evenly over the other tokens in raster order. In the original, budgets follow from the image
(outliers of the attention, and a quarter is about what these are of PruMerge+'s tokens); here the budget is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.recipe.selectors.prumerge import PruMergeEntry
from vtc.selectors.base import Merger, ascending_with, best, kept_mask, padding_last, strides, top_k
from vtc.selectors.ranking import ranks
from vtc.selectors.similarity import cosines
from vtc.visual_tokens import VisualTokens, gather_tokens

NEIGHBOURS = 32
LEAST_WEIGHT = 1e-9


class PruMerge(Merger[PruMergeEntry]):
    """Top-k by attention, each blended with its neighbours, plus one token for all that is dropped."""

    def merge(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor]:
        attention = self.read(tokens, "attention").float()
        batch, count = attention.shape
        if keep == count and not self.entry.as_published:
            return torch.arange(count, device=attention.device).expand(batch, -1), tokens.features
        padding = tokens.padding
        kept = self.choose(padding_last(attention, padding), max(1, keep - 1), padding)
        # Nothing of padding is blended into others, nor into the token for all that is dropped.
        attention = padding_last(attention, padding, last=0.0)
        features = tokens.features.float()
        weights = attention if self.entry.as_published else attention.clamp(min=LEAST_WEIGHT)
        blended = blend(features, self.read(tokens, "keys"), weights, kept, self.entry.as_published)
        if keep > 1:
            dropped = 1 - kept_mask(kept, count)
            extra = best(torch.where(dropped > 0, attention, -1.0))
            blended = torch.cat([blended, rest(features, weights * dropped, self.entry.as_published)], dim=1)
            kept = torch.cat([kept, extra], dim=1)
        return ascending_with(kept, blended.to(tokens.features.dtype))

    def choose(self, attention: Tensor, count: int, padding: Tensor | None = None) -> Tensor:
        """Tokens (B, count) that are kept, by attention (B, N); those by attention come first, best first.

        Padding (B, N), which has the lowest attention, comes after all others.
        """
        if not self.entry.spatial:
            return top_k(attention, count)
        total = attention.shape[1]
        important = top_k(attention, max(1, round(count * self.entry.important)))
        spread = count - important.shape[1]
        if not spread:
            return important
        if self.entry.as_published:
            step = max(1, int(total // important.shape[1] / 3))
            places = torch.arange(total, device=attention.device)
            sampled = (places % step == 0) & (places < total - 1)
            # Samples in raster order come before all others, which are there for budgets that the samples do not fill.
            order = torch.where(sampled, places.float() - total, ranks(attention))
            if padding is not None:
                order = order + 2 * total * padding.float()
            return torch.cat([important, top_k(-(order + 4 * total * kept_mask(important, total)), spread)], dim=1)
        left = total - important.shape[1]
        places = torch.arange(total, device=attention.device)
        if padding is not None:
            taken = kept_mask(important, total)
            others = top_k(-(places + total * torch.maximum(padding.float(), 2 * taken)), left)
            own = torch.gather(padding.float(), 1, others) > 0
            return torch.cat([important, torch.gather(others, 1, strides(own, spread))], dim=1)
        others = top_k(-(places + total * kept_mask(important, total)), left)
        even = torch.tensor([(2 * i + 1) * left // (2 * spread) for i in range(spread)], device=attention.device)
        return torch.cat([important, others.index_select(1, even)], dim=1)


def blend(features: Tensor, keys: Tensor, weights: Tensor, kept: Tensor, as_published: bool) -> Tensor:
    """Kept tokens and their neighbours in one.

    Parameters
    ----------
    features : Tensor of shape (B, N, D), float32
    keys : Tensor of shape (B, N, D)
    weights : Tensor of shape (B, N)
        Attention to each token.
    kept : Tensor of shape (B, K), int64
    as_published : bool

    Returns
    -------
    Tensor of shape (B, K, D)
    """
    count = keys.shape[1]
    own = gather_tokens(features, kept)
    neighbours = min(NEIGHBOURS, count - (1 if as_published else kept.shape[1]))
    if not neighbours:
        return own
    similarity = cosines(gather_tokens(keys, kept), keys)
    places = torch.arange(count, device=kept.device)
    out_of_reach = places == kept.unsqueeze(-1) if as_published else kept_mask(kept, count).unsqueeze(1) > 0
    nearest = top_k(torch.where(out_of_reach, -2.0, similarity), neighbours)
    shares = torch.zeros_like(similarity).scatter(2, nearest, 1.0) * weights.unsqueeze(1)
    if as_published:
        return own + torch.matmul(shares, features)
    own_share = torch.gather(weights, 1, kept).unsqueeze(-1)
    return (own_share * own + torch.matmul(shares, features)) / (own_share + shares.sum(dim=-1, keepdim=True))


def rest(features: Tensor, weights: Tensor, as_published: bool) -> Tensor:
    """All dropped tokens in one.

    Parameters
    ----------
    features : Tensor of shape (B, N, D), float32
    weights : Tensor of shape (B, N)
        Attention to each dropped token, 0 for a kept one.
    as_published : bool

    Returns
    -------
    Tensor of shape (B, 1, D)
    """
    total = torch.matmul(weights.unsqueeze(1), features)
    return total if as_published else total / weights.sum(dim=-1).view(-1, 1, 1)

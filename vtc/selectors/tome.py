"""Token merging: join the most similar tokens until the budget is met (ToMe, arXiv 2210.09461).

One step deals the tokens out in turn to two sides, A and B, finds for each of A the one of B whose key has the highest
cosine with its own, and merges the r best pairs: a token of B becomes the mean of all that it stands for, weighted by
the number of encoder tokens in each.

The original does this inside every layer of the encoder, with the layer's own keys and with attention that counts a
merged token as many. Here it runs after the encoder: keys are merged like the tokens, and steps follow each other, none
merging more than a quarter of the tokens, until exactly the budget is left; between them tokens are in raster order, so
that the sides interleave on the image. Padding is dealt to side A as far as there is room, is merged before all else,
and counts next to nothing in what takes it in.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vtc.recipe.selectors.tome import ToMeEntry
from vtc.selectors.base import E, Merger, ascending_with, best, top_k
from vtc.selectors.similarity import cosines
from vtc.visual_tokens import VisualTokens, gather_tokens

PADDING_SIZE = 1e-6
"""What a token of padding counts in a mean, where others count 1."""


class PairMerger(Merger[E]):
    """Repeated bipartite matching; a merged token stands at the place of the one of B that took others in."""

    def importance(self, tokens: VisualTokens) -> Tensor | None:
        """What counts against merging a token away, (B, N), on the scale of a cosine."""
        return None

    def merge(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor]:
        batch, count, width = tokens.features.shape
        importance = self.importance(tokens)
        parts = [tokens.features.float(), self.read(tokens, "keys").float()]
        if importance is not None:
            parts.append(importance.float().unsqueeze(-1))
        state = torch.cat(parts, dim=-1)
        metric_end = width + parts[1].shape[-1]
        sizes = torch.ones(batch, count, 1, device=state.device)
        places = torch.arange(count, device=state.device).expand(batch, -1)
        if tokens.padding is not None:
            sizes = torch.where(tokens.padding.unsqueeze(-1), PADDING_SIZE, sizes)
        while count > keep:
            step = min(count - keep, max(1, count // 4))
            padding = None
            if tokens.padding is not None:
                padding = sizes.squeeze(-1) < 0.5
                order = padding_on_one_side(padding)
                padding = torch.gather(padding.long(), 1, order) > 0
                places = torch.gather(places, 1, order)
                state, sizes = gather_tokens(state, order), gather_tokens(sizes, order)
            guard = None if importance is None else state[..., -1]
            pairs = match(state[..., width:metric_end], step, importance=guard, padding=padding)
            places = torch.cat([torch.gather(places[:, ::2], 1, pairs.unmerged), places[:, 1::2]], dim=1)
            places, state = ascending_with(places, torch.cat(merge_pairs(state, sizes, pairs), dim=-1))
            state, sizes = state[..., :-1], state[..., -1:]
            count -= step
        return places, state[..., :width].to(tokens.features.dtype)


class ToMe(PairMerger[ToMeEntry]):
    """Bipartite matching by keys alone."""


class Pairs(NamedTuple):
    """Which tokens merge, as positions within the sides A and B.

    Attributes
    ----------
    unmerged : Tensor of shape (B, |A| - r)
        Tokens of A that stay.
    merged, into : Tensors of shape (B, r)
        Tokens of A that go, and the ones of B that take them in.
    """

    unmerged: Tensor
    merged: Tensor
    into: Tensor


def padding_on_one_side(padding: Tensor) -> Tensor:
    """An order (B, N) of tokens with padding (B, N) on even places, on odd ones where those are full; else as it is."""
    count = padding.shape[1]
    numbers = torch.arange(count, device=padding.device)
    key = torch.where(padding, -1, numbers % 2) * count + numbers
    sides = torch.sort(key.float(), dim=-1).indices
    return sides[:, (numbers % 2) * (count - count // 2) + numbers // 2]


def match(metric: Tensor, r: int, importance: Tensor | None = None, padding: Tensor | None = None) -> Pairs:
    """The `r` best pairs of tokens on even places with tokens on odd places.

    Parameters
    ----------
    metric : Tensor of shape (B, N, Dk)
    r : int
    importance : Tensor of shape (B, N) or None
        Taken off the cosine of a pair by its token on the even place.
    padding : Tensor of shape (B, N), bool, or None
        Tokens that, on even places, come before all others.
    """
    r = min(r, metric.shape[1] // 2)
    similarity = cosines(metric[:, ::2], metric[:, 1::2])
    partner = best(similarity).squeeze(-1)
    score = similarity.amax(dim=-1)
    if importance is not None:
        score = score - importance[:, ::2]
    if padding is not None:
        score = torch.where(padding[:, ::2], 2.0, score)  # a cosine is at most 1
    order = top_k(score, score.shape[1])
    merged, unmerged = order[:, :r], order[:, r:]
    return Pairs(unmerged, merged, torch.gather(partner, 1, merged))


def merge_pairs(features: Tensor, sizes: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Size-weighted means (B, N - r, D), and their sizes (B, N - r, 1): unmerged tokens of A, then all of B."""
    weighted = torch.cat([features * sizes, sizes], dim=-1)
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    takes = (torch.arange(odd.shape[1], device=odd.device).view(1, -1, 1) == pairs.into.unsqueeze(1)).float()
    odd = odd + torch.matmul(takes, gather_tokens(even, pairs.merged))
    total = torch.cat([gather_tokens(even, pairs.unmerged), odd], dim=1)
    return total[..., :-1] / total[..., -1:], total[..., -1:]

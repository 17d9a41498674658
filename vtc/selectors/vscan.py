"""VScan, encoder stage: keep what the CLS token attends to locally and globally; dropped tokens merge into kept ones.

VScan (Zhang et al. 2025, arXiv 2505.22654) spends half of the budget, rounded down, on local tokens: the image is cut
into windows, and each gives its share of tokens with the highest CLS attention in a shallow layer. The other half are
the highest of the rest in a deep layer; of LLaVA-1.5 these are layers 5 and 22. Every dropped token is then averaged
into the kept token with the highest cosine to it, in the decoder's space: ``(x + sum of the dropped) / (1 + their
number)``.

Where the local half does not divide by the number of windows, the authors' code loses the remainder and keeps fewer
tokens; here the windows whose next token is highest give one more, and all that the code keeps is kept. The code knows
24 x 24 patches only; here windows are as equal as any grid allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vtc.recipe.selectors.vscan import VScanEntry
from vtc.selectors.base import Selector, ascending, best, kept_mask, padding_last, top_k
from vtc.selectors.given import projected
from vtc.selectors.ranking import ranks, ranks_within
from vtc.selectors.similarity import cosines
from vtc.visual_tokens import VisualTokens, gather_tokens


class VScan(Selector[VScanEntry]):
    """Local and global choice by CLS attention, merging in the decoder's space.

    `prune` merges `projected`; `features` are gathered as they were.
    """

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        windows = _windows(tokens.grids_or_row, self.entry.windows if tokens.grids else 1)
        local = keep // 2
        overall = padding_last(self.read(tokens, "overall").float(), tokens.padding)
        if not local:
            return ascending(top_k(overall, keep))
        chosen = by_window(self.read(tokens, "local").float(), windows, local, tokens.padding)
        rest = torch.where(kept_mask(chosen, overall.shape[-1]) > 0, -torch.inf, overall)
        return ascending(torch.cat([chosen, top_k(rest, keep - local)], dim=1))

    def prune(self, tokens: VisualTokens, keep: int) -> VisualTokens:
        chosen = self.select(tokens, keep)
        return replace(tokens.keep(chosen), projected=averaged(projected(tokens), chosen, tokens.padding))


def _windows(grids: Sequence[tuple[int, int]], per_side: int) -> list[int]:
    """The window of each token of grids in raster order, one grid after the other."""
    return [
        (number * per_side + row * per_side // rows) * per_side + column * per_side // columns
        for number, (rows, columns) in enumerate(grids)
        for row in range(rows)
        for column in range(columns)
    ]


def by_window(score: Tensor, windows: list[int], keep: int, padding: Tensor | None = None) -> Tensor:
    """The highest scores, as many of each window as of any other.

    The highest of every window comes first, then the second of every window, and so on. Of the round in which the
    budget ends the highest are taken; a window that has no more tokens is passed over.

    Parameters
    ----------
    score : Tensor of shape (B, N)
    windows : list of int
        The window of each token.
    keep : int
    padding : Tensor of shape (B, N), bool, or None
        Tokens that come after all others.

    Returns
    -------
    Tensor of shape (B, keep), int64
        In the order of choice.
    """
    score = padding_last(score, padding)
    order = -(ranks_within(score, windows) * len(windows) + ranks(score))
    return top_k(padding_last(order, padding), keep)


def averaged(features: Tensor, chosen: Tensor, padding: Tensor | None = None) -> Tensor:
    """Chosen tokens with the dropped ones averaged in, each into the chosen one most similar to it.

    Parameters
    ----------
    features : Tensor of shape (B, N, D)
    chosen : Tensor of shape (B, K), int64
    padding : Tensor of shape (B, N), bool, or None
        Tokens that are not averaged into others.

    Returns
    -------
    Tensor of shape (B, K, D)
        In the type of `features`.
    """
    target = best(cosines(features, gather_tokens(features, chosen)))
    dropped = 1 - kept_mask(chosen, features.shape[1])
    if padding is not None:
        dropped = dropped * (~padding).float()
    places = torch.arange(chosen.shape[1], device=chosen.device)
    joins = (target == places).float() * dropped.unsqueeze(-1)
    merged = gather_tokens(features, chosen).float() + torch.matmul(joins.transpose(1, 2), features.float())
    return (merged / (1 + joins.sum(dim=1)).unsqueeze(-1)).to(features.dtype)

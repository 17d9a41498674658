"""HiPrune: keep what a middle encoder layer finds, what lies next to it, and what a deep layer summarises.

HiPrune (Liu et al. 2025, arXiv 2508.00553) scores a patch by the attention that it receives from all queries, mean over
heads. ``round(keep * alpha / 5)`` anchors are the highest of the object layer; their four neighbours on the grid are
kept with them; registers, the highest of the deep layer among the rest, fill the budget. Where the anchors and their
neighbours are more than the budget, anchors come first and then the neighbours that the deep layer rates highest.

The authors' code takes neighbours by index: the patch left of a row's first is the last of the row above, and a
neighbour beyond the image becomes the first or the last patch of all. Here a patch at the border has fewer neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.recipe.selectors.hiprune import HiPruneEntry
from vtc.selectors.base import Selector, ascending, kept_mask, padding_last, top_k
from vtc.selectors.ranking import ranks
from vtc.visual_tokens import VisualTokens


class HiPrune(Selector[HiPruneEntry]):
    """Anchors of one layer, their neighbours, and registers of another.

    The object layer picks the anchors: the paper's is 9 of 24 counted from 1, here 8, and 16 of Qwen2.5-VL's. The deep
    layer picks the registers: in LLaVA it is the one whose output feeds the projector.
    """

    def select(self, tokens: VisualTokens, keep: int) -> Tensor:
        found, deep = self.read(tokens, "object"), self.read(tokens, "deep")
        if tokens.padding is not None:
            found, deep = (padding_last(score.float(), tokens.padding) for score in (found, deep))
        return hierarchical(
            found, deep, tokens.grids_or_row, keep, self.entry.alpha, self.entry.as_published, tokens.padding
        )


def hierarchical(
    found: Tensor,
    deep: Tensor,
    grids: Sequence[Grid],
    keep: int,
    alpha: float,
    as_published: bool = False,
    padding: Tensor | None = None,
) -> Tensor:
    """HiPrune's choice by two scores of any scale.

    Parameters
    ----------
    found, deep : Tensors of shape (B, N)
        Scores by the object layer and by the deep layer.
    grids : sequence of (int, int)
        Rows and columns of grids of N tokens together, one after the other.
    keep : int
    alpha : float
    as_published : bool
    padding : Tensor of shape (B, N), bool, or None
        Tokens that come after all others, also beside an anchor; lowest by both scores.

    Returns
    -------
    Tensor of shape (B, keep), int64, ascending
    """
    count = found.shape[1]
    anchors = min(round(keep * alpha / 5), keep)
    if not anchors:
        return ascending(top_k(deep.float(), keep))
    chosen = top_k(found.float(), anchors)
    anchor = kept_mask(chosen, count)
    beside = _beside_by_index(chosen, grids) if as_published else _beside(anchor, grids)
    tier = torch.where(anchor > 0, 2.0, beside)
    return ascending(top_k(padding_last(tier * count - ranks(deep.float()), padding), keep))


def _beside(anchor: Tensor, grids: Sequence[Grid]) -> Tensor:
    """1 for the neighbours of the anchors (B, N), which are 1, on their own grid: (B, N)."""
    parts = torch.split(anchor, [prod(grid) for grid in grids], dim=1)
    return torch.cat([_beside_on_grid(part, grid) for part, grid in zip(parts, grids, strict=True)], dim=1)


def _beside_on_grid(anchor: Tensor, grid: Grid) -> Tensor:
    framed = nn.functional.pad(anchor.reshape(-1, *grid), (1, 1, 1, 1))
    vertical = torch.maximum(framed[:, :-2, 1:-1], framed[:, 2:, 1:-1])
    horizontal = torch.maximum(framed[:, 1:-1, :-2], framed[:, 1:-1, 2:])
    return torch.maximum(vertical, horizontal).flatten(1)


def _beside_by_index(chosen: Tensor, grids: Sequence[Grid]) -> Tensor:
    """1 for the tokens one and one row's length before and after the anchors at `chosen` (B, A): (B, N)."""
    table: list[list[int]] = []
    for rows, columns in grids:
        first, last = len(table), len(table) + rows * columns - 1
        steps = (-columns, -1, 1, columns)
        table += [[min(max(place + step, first), last) for step in steps] for place in range(first, last + 1)]
    beside = torch.tensor(table, device=chosen.device).index_select(0, chosen.flatten())
    return kept_mask(beside.reshape(chosen.shape[0], -1), len(table))

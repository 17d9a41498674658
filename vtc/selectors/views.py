"""What selectors over several views of one image share: a full view first, then its crops in raster order."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.selectors.base import ascending, top_k
from vtc.selectors.ranking import ranks


def view_size(count: int, views: tuple[int, int] | None) -> int:
    """How many of `count` tokens one view has.

    Raises
    ------
    ValueError
        If the tokens cannot be those of a full view and of ``views[0] * views[1]`` crops.
    """
    number = 1 if views is None else 1 + views[0] * views[1]
    if count % number:
        raise ValueError(f"{count} visual tokens are not {number} views of equal size")
    return count // number


def by_middle(size: int, crops: int) -> list[int]:
    """Which of `crops` crops side by side each of `size` rows (or columns) of the full view lies in, by its middle."""
    return [(2 * i + 1) * crops // (2 * size) for i in range(size)]


def region(rows: list[int], columns: list[int], views: tuple[int, int]) -> list[int]:
    """The crop of each patch of the full view, given the row and the column of crops that its own ones lie in."""
    return [row * views[1] + column for row in rows for column in columns]


def totals(values: Tensor, members: list[int], crops: int) -> Tensor:
    """Sums (B, crops) of values (B, n) of the full view's patches over the crops that these are members of."""
    table = [[float(member == crop) for crop in range(crops)] for member in members]
    return torch.matmul(values, torch.tensor(table, device=values.device))


def apportion(score: Tensor, budgets: Tensor, keep: int) -> Tensor:
    """The best tokens of each view, as many as its budget says, and exactly `keep` in all.

    Every view gets the whole part of its budget; what that leaves goes to the largest fractions, one token each, and
    past full views to those that fall short of their budget least.

    Parameters
    ----------
    score : Tensor of shape (B, V, n)
    budgets : Tensor of shape (B, V)
        Tokens for each view, adding up to `keep` or less; may be fractions, and more than n.
    keep : int

    Returns
    -------
    Tensor of shape (B, keep), int64
        Ascending places among the V * n tokens.
    """
    return ascending(top_k((budgets.unsqueeze(-1) - ranks(score)).flatten(1), keep))

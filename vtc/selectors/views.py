"""What selectors over a full view and its crops share; :mod:`vtc.facts.views` says which token belongs to which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import Self

from vtc.facts.model import ModelFacts
from vtc.facts.views import Views, views_of
from vtc.recipe.needs import Reading
from vtc.selectors.base import E, Selector, ascending, padding_last, top_k
from vtc.selectors.ranking import ranks_within


class ViewsSelector(Selector[E]):
    """A selector that shares its budget between a full view and its crops.

    Parameters
    ----------
    entry : EncoderSelectorEntry
    readings : mapping of str to Reading
    views : Views or None
        Which tokens belong to which view; None for an image of a single view.
    """

    def __init__(self, entry: E, readings: Mapping[str, Reading], views: Views | None = None) -> None:
        super().__init__(entry, readings)
        self.views = views

    @classmethod
    def build(cls, entry: E, facts: ModelFacts, running: Sequence[int]) -> Self:
        return cls(entry, entry.readings(facts, running), views_of(facts.layout))


def view_tokens(values: Tensor, views: Views, view: int) -> Tensor:
    """Values (B, n) of one view's tokens among those (B, N) of all.

    Raises
    ------
    ValueError
        If N is another number than that of the views' tokens.
    """
    if values.shape[1] != len(views.owners):
        raise ValueError(f"{values.shape[1]} visual tokens are not the {len(views.owners)} of all views")
    return values.index_select(1, torch.tensor(views.tokens_of(view), device=values.device))


def totals(values: Tensor, members: Sequence[int], crops: int) -> Tensor:
    """Sums (B, crops) of values (B, n) of the full view's patches over the crops that these are members of."""
    table = [[float(member == crop) for crop in range(crops)] for member in members]
    return torch.matmul(values, torch.tensor(table, device=values.device))


def apportion(score: Tensor, views: Views, budgets: Tensor, keep: int, padding: Tensor | None = None) -> Tensor:
    """The best tokens of each view, as many as its budget says, and exactly `keep` in all.

    Every view gets the whole part of its budget; what that leaves goes to the largest fractions, one token each, and
    past views that have no more to those that fall short of their budget least.

    Parameters
    ----------
    score : Tensor of shape (B, N)
    views : Views
        Of those N tokens.
    budgets : Tensor of shape (B, 1 + crops)
        Tokens for the full view and each crop, adding up to `keep` or less; may be fractions, and more than there are.
    keep : int
    padding : Tensor of shape (B, N), bool, or None
        Tokens that no view keeps while another has others.

    Returns
    -------
    Tensor of shape (B, keep), int64
        Ascending places among the N tokens.
    """
    owners = torch.tensor(views.owners, device=score.device)
    ranked = ranks_within(padding_last(score, padding), views.owners)
    return ascending(top_k(padding_last(budgets.index_select(1, owners) - ranked, padding), keep))

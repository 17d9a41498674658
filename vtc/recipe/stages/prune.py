"""`prune` in a recipe."""

from __future__ import annotations

from typing import Literal

from vtc.recipe.selectors import ENCODER_SELECTORS, EncoderSelector
from vtc.recipe.stages.base import Place, StageEntry
from vtc.recipe.values import KeepOrBudgets, Positions


class PruneEntry(StageEntry):
    """Keep the tokens that a selector chooses, between the vision encoder and the decoder.

    After a ``project`` stage it chooses among the tokens that this has made.
    """

    summary = "keep the tokens that a selector chooses"
    acts = Place.TOKENS
    until = Place.PROJECTOR
    keeps_grid = False
    spends_budget = True
    selectors = ENCODER_SELECTORS
    kind: Literal["prune"] = "prune"
    keep: KeepOrBudgets | None = None
    """Tokens of an image that are kept: a number, or a share of those that come in; or a list of numbers, of which
    each question takes one. Left out where the recipe has a budget."""
    selector: EncoderSelector
    """What chooses them: the name of a selector, or its name and options."""
    positions: Positions = "renumber"
    """Positions that the decoder is told for the kept tokens: ``renumber`` counts them through, ``original`` gives each
    the position it had among all. Where a position is time, row and column (Qwen's families), both mean
    ``original``."""

    @property
    def encoder_layers_named(self) -> tuple[int, ...]:
        return self.selector.layers_named

    @property
    def convention(self) -> Positions:
        return self.positions

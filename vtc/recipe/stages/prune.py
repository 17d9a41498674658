"""`prune` in a recipe."""

from __future__ import annotations

from typing import Literal

from vtc.recipe.selectors import ENCODER_SELECTORS, EncoderSelector
from vtc.recipe.stages.base import Place, StageEntry
from vtc.recipe.values import Keep, Positions


class PruneEntry(StageEntry):
    """Keep the tokens that a selector chooses, between the vision encoder and the decoder.

    ``keep`` may be left to the recipe's budget. ``positions`` is what the decoder is told of them: ``renumber`` counts
    the kept tokens through, ``original`` gives each the position it had among all. Where a position is time, row and
    column (Qwen's families), both mean ``original``.
    """

    summary = "keep the tokens that a selector chooses"
    acts = Place.TOKENS
    keeps_grid = False
    spends_budget = True
    selectors = ENCODER_SELECTORS
    kind: Literal["prune"] = "prune"
    keep: Keep | None = None
    selector: EncoderSelector
    positions: Positions = "renumber"

    @property
    def encoder_layers_named(self) -> tuple[int, ...]:
        return self.selector.layers_named

    @property
    def convention(self) -> Positions:
        return self.positions

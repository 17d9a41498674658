"""`prune_in_decoder` in a recipe."""

from __future__ import annotations

from typing import Literal

from vtc.recipe.selectors import DECODER_SELECTORS, DEFAULT_DECODER_SELECTOR, DecoderSelector, TextAttentionEntry
from vtc.recipe.stages.base import Place, StageEntry
from vtc.recipe.values import Keep, LayerOrDepth


class PruneInDecoderEntry(StageEntry):
    """Keep, before decoder layer ``layer``, the visual tokens that a selector chooses by the prompt.

    Layers 0 to ``layer`` - 1 see all that entered, the others what is kept, each at the position it had. Several cuts
    may follow one another.

    Based on LearnPruner (arXiv 2604.23950), section 4, and PyramidDrop (arXiv 2410.17247) for several cuts.
    """

    summary = "keep, before a decoder layer, the tokens that the text attends to"
    acts = Place.DECODER
    keeps_grid = False
    spends_budget = True
    selectors = DECODER_SELECTORS
    default_selector = DEFAULT_DECODER_SELECTOR
    kind: Literal["prune_in_decoder"] = "prune_in_decoder"
    layer: LayerOrDepth
    """The first decoder layer that sees fewer tokens: its number from 0, negative from the end, or a share of the
    decoder's depth."""
    keep: Keep | None = None
    """Tokens of an image that are kept: a number, or a share of those that come in. Left out where the recipe has a
    budget."""
    selector: DecoderSelector = TextAttentionEntry()
    """What chooses them: the name of a selector, or its name and options."""

    @property
    def cut_before(self) -> int | float:
        return self.layer

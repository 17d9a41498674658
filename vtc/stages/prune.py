"""Prune: a selector keeps K of the visual tokens between the encoder and the projector; the others leave."""

from __future__ import annotations

from typing import Any

from vtc.recipe.needs import Needs
from vtc.recipe.stages import PruneEntry
from vtc.selectors import build_selector
from vtc.selectors.base import Selector
from vtc.stages.base import BuildContext, TokenStage
from vtc.visual_tokens import VisualTokens


class Prune(TokenStage):
    """Keep exactly `keep` tokens of each run of placeholders, in raster order."""

    def __init__(self, selector: Selector[Any], keep: int) -> None:
        super().__init__()
        self.selector = selector
        self.keep = keep

    @property
    def needs(self) -> Needs:
        return self.selector.needs

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens that the selector keeps."""
        return self.selector.prune(tokens, self.keep)


def build(entry: PruneEntry, context: BuildContext) -> Prune:
    """Make the stage with the recipe's selector; trained parameters are empty."""
    built = build_selector(entry.selector, context.adapter.facts, context.plan.encoder_layers)
    return Prune(context.selector or built, context.keep_per_span)

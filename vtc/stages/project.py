"""Project: a projector of the recipe's makes the tokens that enter the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vtc.facts.layout import Grid
from vtc.models.base import VLMAdapter
from vtc.projectors import build_projector
from vtc.projectors.base import Projector, TrainedProjector
from vtc.recipe.needs import Needs
from vtc.recipe.stages import ProjectEntry
from vtc.stages.base import BuildContext, TokenStage
from vtc.visual_tokens import VisualTokens, in_grids


class Project(TokenStage):
    """A projector in the place of a model's own.

    Parameters
    ----------
    projector : Projector
    adapter : VLMAdapter
        Whose own projector some go on with.
    grids : sequence of (int, int)
        That the new tokens fill; none where they fill none.
    """

    def __init__(self, projector: Projector, adapter: VLMAdapter, grids: Sequence[Grid]) -> None:
        super().__init__()
        self.projector = projector
        self.adapter = adapter
        self.grids = tuple(grids)

    @property
    def needs(self) -> Needs:
        return self.projector.needs

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """New tokens in the decoder's space."""
        made = self.projector(tokens, self.adapter.projector)
        return replace(in_grids(made, self.grids), projected=made, text=tokens.text)


def build(entry: ProjectEntry, context: BuildContext) -> Project:
    """Make the projector for the grid that comes to it; parameters are what training begins with."""
    (grid,) = context.step.grids_in
    running = context.plan.encoder_layers
    projector = build_projector(entry.projector, context.adapter, grid, context.keep_per_span, running)
    if isinstance(projector, TrainedProjector) and entry.budgets:
        projector.budgets = tuple(map(context.plan.per_span, entry.budgets))
    return Project(projector, context.adapter, context.step.grids_out)

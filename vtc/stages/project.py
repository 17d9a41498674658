"""Project: a projector of the recipe's makes the tokens that enter the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from vtc.facts.layout import Grid
from vtc.models.base import VLMAdapter
from vtc.models.lora import with_lora
from vtc.projectors import build_projector
from vtc.projectors.base import Projector, TrainedProjector
from vtc.recipe.needs import Needs
from vtc.recipe.projectors.base import TrainedProjectorEntry
from vtc.recipe.stages import ProjectEntry
from vtc.stages.base import BuildContext, TokenStage
from vtc.visual_tokens import TextEmbeddings, VisualTokens, in_grids


class Project(TokenStage):
    """A projector in the place of a model's own.

    Parameters
    ----------
    projector : Projector
    adapter : VLMAdapter
        Whose own projector some go on with, and whose decoder follows: tuned with the projector, where that has `lora`.
    grids : sequence of (int, int)
        That the new tokens fill; none where they fill none.
    views : int
        Grids that come in, one after the other; each is projected by itself.
    """

    def __init__(self, projector: Projector, adapter: VLMAdapter, grids: Sequence[Grid], views: int = 1) -> None:
        super().__init__()
        self.projector = projector
        self.adapter = adapter
        self.grids = tuple(grids)
        self.views = views

    @property
    def needs(self) -> Needs:
        return self.projector.needs

    def changed(self, adapter: VLMAdapter) -> VLMAdapter:
        return adapter if self.adapter.lora is None else self.adapter

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """New tokens in the decoder's space."""
        return self._placed(self.projector(by_view(tokens, self.views), self.adapter.projector), tokens)

    def begin(self, tokens: VisualTokens) -> VisualTokens:
        """As far as the projector comes without the question; nothing else is gone on with."""
        begun = self.projector.begin(by_view(tokens, self.views), self.adapter.projector)
        rows = tokens.features.shape[0]
        named = {name: value.reshape(rows, -1, *value.shape[2:]) for name, value in begun.tensors().items()}
        return replace(begun.with_tensors(named), grids=begun.grids * self.views, padding=None)

    def finish(self, begun: VisualTokens) -> VisualTokens:
        made = self.projector.finish(by_view(begun, self.views), self.adapter.projector)
        return self._placed(made, begun)

    def _placed(self, made: Tensor, tokens: VisualTokens) -> VisualTokens:
        """What a projector made of the views of tokens."""
        made = made.reshape(tokens.features.shape[0], -1, made.shape[-1])
        return replace(in_grids(made, self.grids), projected=made, text=tokens.text)


def by_view(tokens: VisualTokens, views: int) -> VisualTokens:
    """What a projector may look at, (B * views, N / views, D), of tokens (B, N, D) that are equal grids in a row.

    A CLS state and the question are the same for all views of an image; `image` has a part for each, in a row.
    """
    if views == 1:
        return tokens

    def split(values: Tensor) -> Tensor:
        return values.reshape(values.shape[0] * views, -1, *values.shape[2:])

    def repeated(values: Tensor) -> Tensor:
        return values.repeat_interleave(views, dim=0)

    readings = {
        reading: repeated(value) if reading.kind == "cls_state" else split(value)
        for reading, value in tokens.readings.items()
    }
    text = tokens.text and TextEmbeddings(repeated(tokens.text.states), repeated(tokens.text.mask))
    image = None if tokens.image is None else split(tokens.image)
    return replace(in_grids(split(tokens.features), tokens.grids[:1], readings=readings), text=text, image=image)


def build(entry: ProjectEntry, context: BuildContext) -> Project:
    """Make the projector for the grid that comes to it; parameters are what training begins with."""
    grid, views = context.step.grids_in[0], len(context.step.grids_in)
    running = context.plan.encoder_layers
    projector = build_projector(entry.projector, context.adapter, grid, context.keep_per_span // views, running)
    adapter = context.adapter
    if isinstance(projector, TrainedProjector) and isinstance(entry.projector, TrainedProjectorEntry):
        if entry.budgets:
            projector.budgets = tuple(context.plan.per_span(keep) // views for keep in entry.budgets)
        if (lora := entry.projector.lora) is not None:
            adapter = with_lora(adapter, lora.rank, lora.alpha) if adapter.lora is None else adapter
            projector.lora = adapter.lora
    return Project(projector, adapter, context.step.grids_out, views)

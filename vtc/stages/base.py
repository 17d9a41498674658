"""The interface of a stage's module, and what building one may ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtc.models.base import VLMAdapter
from vtc.plan.token_plan import StagePlan, TokenPlan
from vtc.recipe.needs import NOTHING, Needs
from vtc.selectors.base import Selector
from vtc.visual_tokens import VisualTokens


@dataclass(frozen=True)
class BuildContext:
    """Where a stage is built.

    Attributes
    ----------
    adapter : VLMAdapter
        The model.
    plan : TokenPlan
        The recipe resolved against it.
    number : int
        Of the stage in the recipe.
    selector : Selector or None
        One of the caller's own, in place of the one that the recipe names.
    """

    adapter: VLMAdapter
    plan: TokenPlan
    number: int
    selector: Selector[Any] | None = None

    @property
    def step(self) -> StagePlan:
        """What the plan says of the stage."""
        return self.plan.stages[self.number]

    @property
    def tokens_per_span(self) -> int:
        """Visual tokens of a run of placeholders that come to the stage."""
        return self.plan.per_span(self.step.tokens_in)

    @property
    def keep_per_span(self) -> int:
        """Visual tokens of a run of placeholders that leave the stage."""
        return self.plan.per_span(self.step.tokens_out)


class Cut(NamedTuple):
    """Where the tokens of a batch stand around a cut (see :class:`vtc.inputs.schedule.SegmentSchedule`).

    Attributes
    ----------
    image_rows : Tensor of shape (I,), int64
    image_columns : Tensor of shape (I, K), int64
    query_columns, query_mask : Tensors of shape (I, Q), int64
    layout : Tensor of shape (B, S'), int64
    padding : Tensor of shape (I, K), int64, or None
        1 for tokens that show nothing but a bar around their image; None where images get none.
    """

    image_rows: Tensor
    image_columns: Tensor
    query_columns: Tensor
    query_mask: Tensor
    layout: Tensor
    padding: Tensor | None = None

    def sources(self, length: int, keep_indices: Tensor) -> Tensor:
        """Where each token (B, S') of a row after the cut stood among the row's S = `length` before it.

        Parameters
        ----------
        length : int
        keep_indices : Tensor of shape (I, keep), int64
        """
        kept = torch.gather(self.image_columns, 1, keep_indices).flatten()
        return torch.cat([torch.arange(length, device=kept.device), kept])[self.layout]


class CutStage(nn.Module, ABC):
    """A stage between two decoder layers that keeps some of the visual tokens.

    Parameters
    ----------
    tokens, keep : int
        Visual tokens of a run of placeholders before and after the cut.
    query_tokens : str
        Which text tokens it is given as queries; see :func:`vtc.inputs.schedule.query_tokens`.
    reads_before : bool
        Whether it looks at the layer before the cut, whose input the segment there then gives out.
    """

    def __init__(self, tokens: int, keep: int, query_tokens: str, reads_before: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.keep = keep
        self.query_tokens = query_tokens
        self.reads_before = reads_before

    @abstractmethod
    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cut: Cut,
        before: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cut a batch of B rows with I spans.

        Parameters
        ----------
        hidden : Tensor of shape (B, S, E')
            Hidden states, and after them DeepStack features.
        attention_mask : Tensor of shape (B, S), int64
        position_ids : Tensor of shape (B, S) or (3, B, S), int64
        cut : Cut
        before : Tensor of shape (B, S, E) or None
            Hidden states entering the layer before the cut, where the selector reads them.

        Returns
        -------
        hidden : Tensor of shape (B, S', E')
        position_ids : Tensor of shape (B, S') or (3, B, S'), int64
        keep_indices : Tensor of shape (I, keep), int64
            Which of the K tokens stay, ascending.
        """


class ModelStage(nn.Module):
    """A stage after which the model itself may be another."""

    def changed(self, adapter: VLMAdapter) -> VLMAdapter:
        """The model as later stages and the decoder have it; `adapter` where this stage leaves it alone."""
        return adapter


class WeightStage(ModelStage):
    """A stage that changes the model's weights, and nothing of its tokens."""


class TokenStage(ModelStage, ABC):
    """A stage between the vision encoder and the decoder: visual tokens in, visual tokens out."""

    @property
    def needs(self) -> Needs:
        """What it looks at beyond the features and the grid."""
        return NOTHING

    @abstractmethod
    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Make the tokens that go on."""

    def begin(self, tokens: VisualTokens) -> VisualTokens:
        """Do what of a stage that reads the question does not depend on it: nothing, unless a kind says otherwise."""
        return tokens

    def finish(self, begun: VisualTokens) -> VisualTokens:
        """Go on with what :meth:`begin` made, now that the question is known."""
        made: VisualTokens = self(begun)
        return made

"""QMoP in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.recipe.needs import Reading
from vtc.recipe.projectors.base import PooledEntry, linear, passing, pooling
from vtc.recipe.selectors.base import Product
from vtc.recipe.training import DistillationTraining
from vtc.recipe.values import Weight

Branch = Literal["resampler", "pooling", "pruning"]
BRANCHES: tuple[Branch, ...] = get_args(Branch)


class QmopTraining(DistillationTraining):
    """Training of a mixture of projectors."""

    equal_first: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of the steps, the first ones, in which all branches weigh the same, whatever the router says."""
    balance: Weight = 0.01
    """Weight of the loss that keeps the router from leaving out the same branch for all questions."""


class QmopEntry(PooledEntry):
    """A resampler, pooling and pruning, weighed by a router that looks at the image and the question.

    Its authors' code and text were not to be had: beyond the three branches and the router all of it is assumed, as the
    module's docstring says.

    Based on QMoP (arXiv 2603.21232).
    """

    summary = "resampler, pooling and pruning, weighed by image and question"
    paper = "QMoP (arXiv 2603.21232)"
    reads = "the question, and the encoder's CLS token where it has one"
    text_aware = True
    name: Literal["qmop"] = "qmop"
    branches: Annotated[tuple[Branch, ...], Field(min_length=1, strict=False)] = BRANCHES
    """Which of the three it is made of. One alone has no router, and reads no question."""
    projection: Literal["two_layers", "linear"] = "two_layers"
    """What takes a branch's tokens to the decoder: LLaVA's two layers, which begin as the model's own, or one."""
    mixture: Literal["top_2", "all"] = "top_2"
    """Whether the branch that the router rates lowest is left out."""
    router: Annotated[int, Field(ge=1)] = 256
    """Inner size of the router."""
    question: bool = True
    """Whether the router looks at the question, or at the image alone."""
    training: QmopTraining | None = None
    """How it is trained; goes with ``checkpoint: auto``."""

    @field_validator("branches")
    @classmethod
    def _each_once(cls, value: tuple[Branch, ...]) -> tuple[Branch, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a branch twice")
        return tuple(branch for branch in BRANCHES if branch in value)

    @property
    def routed(self) -> bool:
        """Whether there are branches to weigh."""
        return len(self.branches) > 1

    @property
    def seeks_question(self) -> bool:
        return self.routed and self.question

    def readings(self, facts: ModelFacts) -> tuple[Reading, ...]:
        reads = self.routed and facts.encoder.has_cls
        return (Reading("cls_state", facts.encoder.feature_layer + 1),) if reads else ()

    @staticmethod
    def image(facts: ModelFacts) -> int:
        """Values of the image's vector: a CLS token is no wider than a patch, and a token may be several of those."""
        return facts.encoder.width if facts.encoder.has_cls else facts.token_width

    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        width = facts.token_width
        vectors = self._vectors(facts)
        router = 2 * vectors + linear((vectors, self.router), (self.router, len(self.branches)))
        own = {"resampler": (keep + prod(grid)) * width + 2 * width + 4 * width**2, "pruning": linear((width, 1))}
        branches = sum(own.get(branch, 0) + linear(*self._layers(facts)) for branch in self.branches)
        return branches + self.routed * router

    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        width, tokens, vectors = facts.token_width, prod(grid), self._vectors(facts)
        own: dict[Branch, list[Product]] = {
            "resampler": [
                *[(keep, width, width), (tokens, width, 2 * width), (keep, width, tokens), (keep, tokens, width)],
                (keep, width, width),
            ],
            "pooling": pooling(width, grid, self.grid_of(keep, grid)),
            "pruning": [(tokens, width, 1)],
        }
        branches = [
            product for branch in self.branches for product in (*own[branch], *passing(keep, *self._layers(facts)))
        ]
        return branches + self.routed * [(1, vectors, self.router), (1, self.router, len(self.branches))]

    def _vectors(self, facts: ModelFacts) -> int:
        """Values that the router reads."""
        return self.image(facts) + self.question * facts.decoder.width

    def _layers(self, facts: ModelFacts) -> list[tuple[int, int]]:
        """Inputs and outputs of what takes a branch's tokens to the decoder."""
        width, out = facts.token_width, facts.decoder.width
        return [(width, out), (out, out)] if self.projection == "two_layers" else [(width, out)]

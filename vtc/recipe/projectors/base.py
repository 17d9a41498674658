"""What the recipe entries of all projectors have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from math import isqrt, prod
from typing import Annotated, ClassVar

from pydantic import Field

from vtc.facts.layout import Grid, smaller_grid
from vtc.facts.model import ModelFacts
from vtc.recipe.lora import Lora
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import Product
from vtc.recipe.trained import Trained
from vtc.recipe.training import DistillationTraining
from vtc.recipe.values import Written

Depths = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1, strict=False)]
"""Depths of what is read of the encoder: 1 is what goes to the projector."""


class ProjectorEntry(Written):
    """A projector as a recipe names it."""

    name: str
    summary: ClassVar[str]
    paper: ClassVar[str]
    reads: ClassVar[str] = "nothing"
    """What it looks at beyond the encoder's tokens, in words."""
    text_aware: ClassVar[bool] = False
    elastic: ClassVar[bool] = False
    """Its parameters are the same for every number of tokens, so that one training can serve several."""
    has_grid: ClassVar[bool] = True
    """The tokens that it gives fill a grid."""

    @property
    def seeks_question(self) -> bool:
        """Whether it looks for the question in the text after an image."""
        return self.text_aware

    def readings(self, facts: ModelFacts) -> tuple[Reading, ...]:
        """What it reads of encoder layers."""
        return ()

    @abstractmethod
    def keeps(self, grid: Grid) -> Sequence[int]:
        """Numbers of tokens that it can make of those of a grid, ascending."""

    def grid_of(self, keep: int, grid: Grid) -> Grid:
        """The grid of `keep` tokens that it makes of one; a row of them where it `has_grid` not."""
        return 1, keep

    def projections(self, keep: int, grid: Grid) -> int:
        """Tokens that pass the model's own projector."""
        return 0

    @abstractmethod
    def parameters(self, facts: ModelFacts, keep: int, grid: Grid) -> int:
        """Numbers that training makes."""

    @abstractmethod
    def products(self, facts: ModelFacts, keep: int, grid: Grid) -> Iterable[Product]:
        """The matrix products that one grid takes, without those of the model's own projector."""


class TrainedProjectorEntry(ProjectorEntry, Trained):
    """A projector with parameters of its own."""

    stem = "projector"
    training: DistillationTraining | None = None
    """How it is trained; goes with ``checkpoint: auto``."""
    lora: Lora | None = None
    """Updates of the decoder that are trained with it, and are part of its file; without, the decoder stays as it
    is."""

    @property
    def shipped(self) -> str:
        return f"{self.stem}-{self.name}" + "-lora" * (self.lora is not None)


class PooledEntry(TrainedProjectorEntry):
    """A projector whose tokens fill any smaller grid."""

    def keeps(self, grid: Grid) -> Sequence[int]:
        return any_grid(grid)

    def grid_of(self, keep: int, grid: Grid) -> Grid:
        found = smaller_grid(grid, keep)
        if found is None:
            raise AssertionError("the number is among those that it can give")
        return found


class SquaresEntry(ProjectorEntry):
    """A projector that makes a token of each square of the grid."""

    def keeps(self, grid: Grid) -> Sequence[int]:
        return squares(grid)

    def grid_of(self, keep: int, grid: Grid) -> Grid:
        side = side_of(keep, grid)
        return grid[0] // side, grid[1] // side


class SeesSquaresEntry(SquaresEntry, TrainedProjectorEntry):
    """A projector whose every token sees one square, in several encoder layers."""

    depths: Depths = (0.522, 0.696, 0.957, 1.0)
    """Depths of the encoder at which keys and values are read; 1 is what goes to the projector. The default is layers
    12, 16, 22 and 23 of CLIP-L, as the authors of TokenPacker and QueCC have it. ``[1.0]`` costs least."""

    def readings(self, facts: ModelFacts) -> tuple[Reading, ...]:
        whole = facts.encoder.feature_layer + 1
        return tuple(Reading("hidden_states", max(0, round(depth * whole))) for depth in self.depths)

    def read(self, facts: ModelFacts) -> int:
        """Values of a patch in all layers that are read."""
        return facts.token_width * len(self.depths)


def any_grid(grid: Grid) -> list[int]:
    """Numbers of tokens that fill a grid no larger than one in rows and columns."""
    return sorted({rows * columns for rows in range(1, grid[0] + 1) for columns in range(1, grid[1] + 1)})


def squares(grid: Grid) -> list[int]:
    """Numbers of tokens of one for each square, for all sides that divide the grid."""
    sides = [side for side in range(1, min(grid) + 1) if grid[0] % side == grid[1] % side == 0]
    return sorted(prod(grid) // side**2 for side in sides)


def side_of(keep: int, grid: Grid) -> int:
    """The side of the squares of a grid that `keep` tokens stand for."""
    return isqrt(prod(grid) // keep)


def pooling(width: int, grid: Grid, keep_grid: Grid) -> list[Product]:
    """Products that resample tokens of `width` numbers, one for rows and one for columns."""
    return [(keep_grid[0], grid[0], grid[1] * width), (prod(keep_grid), grid[1], width)]


def linear(*layers: tuple[int, int]) -> int:
    """Parameters of linear layers with biases, each given by its inputs and outputs."""
    return sum((inputs + 1) * outputs for inputs, outputs in layers)


def passing(tokens: int, *layers: tuple[int, int]) -> list[Product]:
    """Products of tokens that pass linear layers."""
    return [(tokens, inputs, outputs) for inputs, outputs in layers]


def heads_of(width: int, size: int) -> int:
    """Heads of attention of about `size` numbers each, which `width` divides into."""
    return next(heads for heads in range(max(1, width // size), 0, -1) if width % heads == 0)


def seeing(width: int, keep: int, tokens: int) -> list[Product]:
    """Products of attention in which each of `tokens` is seen by one of `keep`."""
    return [
        (keep, width, width),
        (tokens, width, 2 * width),
        (tokens, width, 1),
        (1, tokens, width),
        (keep, width, width),
    ]

"""What the recipe entries of all stages have in common, and where in the pipeline a stage may act."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Literal

from vtc.recipe.projectors.base import ProjectorEntry
from vtc.recipe.selectors.base import SelectorEntry
from vtc.recipe.trained import Trained
from vtc.recipe.values import Positions, Written

METHODS = ("selector", "projector")
"""Keys of a stage that name a method, alone or with its options."""


class Place(IntEnum):
    """Where in the pipeline a stage acts; stages stand in this order, in which data meets them."""

    PIXELS = 0
    ENCODER = 1
    TOKENS = 2
    """The encoder's tokens, before the projector."""
    PROJECTOR = 3
    DECODER = 4
    WEIGHTS = 5

    @property
    def makes_tokens(self) -> bool:
        """Whether what comes out are the visual tokens that enter the decoder."""
        return self in (Place.TOKENS, Place.PROJECTOR)


@dataclass(frozen=True)
class LayerRemoval:
    """Layers that a stage takes away.

    Attributes
    ----------
    component
        ``decoder`` or ``encoder``.
    layers
        As the recipe lists them; ``auto`` leaves the choice of `count` of them to calibration.
    count
        How many, where `layers` is ``auto``.
    visual_only
        Whether visual tokens skip the layers, which text still passes.
    """

    component: Literal["decoder", "encoder"]
    layers: tuple[int, ...] | Literal["auto"]
    count: int | None
    visual_only: bool


class StageEntry(Written):
    """A stage as a recipe names it.

    What the plan has to know of a kind before it looks at a model is said here, so that nothing asks an entry for its
    kind.
    """

    kind: str
    summary: ClassVar[str]
    acts: ClassVar[Place]
    """The place of the kind; see `place`."""
    until: ClassVar[Place | None] = None
    """The last place at which it may act, where that is a later one than `acts`."""
    keeps_grid: ClassVar[bool] = True
    """The tokens after it fill whole grids if those before it did."""
    keeps_places: ClassVar[bool] = True
    """The tokens after it are some of those before it, each with the place that it had in the image."""
    spends_budget: ClassVar[bool] = False
    """It has a `keep` that may be left to the recipe's budget."""
    guides: ClassVar[Mapping[str, str]] = {}
    """Key that may be ``auto``, to the key that guides the choice and goes when it is made."""
    selectors: ClassVar[Mapping[str, type[SelectorEntry]]] = {}
    """Selectors that its `selector` may name."""
    projectors: ClassVar[Mapping[str, type[ProjectorEntry]]] = {}
    """Projectors that its `projector` may name."""
    needs_experts: ClassVar[bool] = False
    """It is for mixtures of experts alone."""
    default_selector: ClassVar[str] = ""
    """The selector that options without a name belong to."""

    @classmethod
    def methods(cls, key: str) -> Mapping[str, type[Written]]:
        """Return what its `selector` or its `projector` may name."""
        return cls.selectors if key == "selector" else cls.projectors

    @property
    def place(self) -> Place:
        """Where in the pipeline this stage acts."""
        return self.acts

    @property
    def budgets(self) -> tuple[int, ...]:
        """Numbers of tokens of which each question takes one, ascending; none where it has one `keep` for all."""
        keep = getattr(self, "keep", None)
        return keep if isinstance(keep, tuple) else ()

    @property
    def selects(self) -> bool:
        """Whether a selector keeps some of the tokens, each at its place."""
        return bool(self.selectors)

    @property
    def splits(self) -> bool:
        """Whether it reads the question before the decoder, so that the vision graph can be split there."""
        methods = [getattr(self, key, None) for key in METHODS]
        return self.place < Place.DECODER and any(method is not None and method.seeks_question for method in methods)

    @property
    def deed(self) -> str:
        """What a message calls this stage."""
        return self.kind

    @property
    def removal(self) -> LayerRemoval | None:
        """Layers that it takes away."""
        return None

    @property
    def exit_before(self) -> int | float | Literal["auto"] | None:
        """The decoder layer before which all visual tokens leave."""
        return None

    @property
    def cut_before(self) -> int | float | None:
        """The decoder layer before which some visual tokens leave."""
        return None

    @property
    def encoder_layers_named(self) -> tuple[int, ...]:
        """Encoder layers that it reads by number, negative ones from the end."""
        return ()

    @property
    def convention(self) -> Positions | None:
        """What the decoder is told of the positions of the tokens that it keeps."""
        return None

    def trained(self) -> Iterator[tuple[tuple[str, ...], Trained]]:
        """Yield its part with parameters of its own, if it has one, and the keys that lead to it."""
        if isinstance(self, Trained):
            yield (), self
        for key in METHODS:
            part = getattr(self, key, None)
            if isinstance(part, Trained):
                yield (key,), part

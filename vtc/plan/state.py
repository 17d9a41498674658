"""What a stage is told of the visual tokens that come to it, and what it says of those that leave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from vtc.facts.layout import Grid
from vtc.facts.model import DecoderFacts, ModelFacts
from vtc.plan.depth import DecoderDepth, EncoderDepth
from vtc.plan.faults import Faults
from vtc.recipe.needs import Reading
from vtc.recipe.stages import Place, StageEntry
from vtc.recipe.values import Positions


@dataclass(frozen=True)
class TokenState:
    """The visual tokens of one run of placeholders at one point of the pipeline, and what they have cost so far.

    Attributes
    ----------
    tokens
        How many there are.
    grids
        (H, W) of the whole grids that they fill, one after the other; none where they fill no grid.
    position_grids, position_tokens
        The grids that their places count, and the number of those places, separators included.
    decoder
        Sizes of the decoder, as stages up to here leave it.
    has_places
        Whether they are some of the original tokens, each with its place in the image.
    projected
        Whether they are in the decoder's space.
    positions
        The position convention that a stage has chosen; None before one has.
    projections
        Tokens that pass the projector; None where that is all that enter the decoder.
    readings
        Values of encoder layers that stages read.
    flops
        Operations added to the exact count, for one run of placeholders, by part of the model.
    """

    tokens: int
    grids: tuple[Grid, ...]
    position_grids: tuple[Grid, ...]
    position_tokens: int
    decoder: DecoderFacts
    has_places: bool = True
    projected: bool = False
    positions: Positions | None = None
    projections: int | None = None
    readings: frozenset[Reading] = frozenset()
    flops: Mapping[str, int] = field(default_factory=dict)

    def costing(self, part: str, flops: int) -> TokenState:
        """Return the same tokens, at a cost of `flops` more operations in a part of the model."""
        return replace(self, flops={**self.flops, part: self.flops.get(part, 0) + flops})

    def with_costs_of(self, later: TokenState) -> TokenState:
        """Return these tokens with what has been spent, read and made of the decoder up to a later point."""
        return replace(self, flops=later.flops, readings=later.readings, decoder=later.decoder)

    def kept(self, tokens: int) -> TokenState:
        """Return what is left where `tokens` of them are kept, each at its place."""
        return replace(self, tokens=tokens, grids=())

    def remade(self, grids: tuple[Grid, ...]) -> TokenState:
        """Return new tokens without places in the image, which fill `grids`."""
        tokens = sum(rows * columns for rows, columns in grids)
        return replace(self, tokens=tokens, grids=grids, position_grids=grids, position_tokens=tokens, has_places=False)


@dataclass(frozen=True)
class Step:
    """What a stage does.

    Attributes
    ----------
    after
        The tokens that later stages see.
    detail
        What it does here, in words.
    tokens_out
        Tokens of one run of placeholders that the plan names; None where that is ``after.tokens``.
    layer, layers, parameters, experts, visual_experts
        See :class:`vtc.plan.token_plan.StagePlan`.
    """

    after: TokenState
    detail: str
    tokens_out: int | None = None
    layer: int | None = None
    layers: tuple[int, ...] = ()
    parameters: int = 0
    experts: int | None = None
    visual_experts: int | None = None


@dataclass(frozen=True)
class Context:
    """Where a stage acts.

    Attributes
    ----------
    number
        Of the stage in the recipe.
    facts
        The model's sizes.
    encoder, decoder
        Which layers run and what they see.
    keep
        Tokens of one run of placeholders that the recipe's budget leaves this stage; None without a budget.
    text_tokens
        Tokens of the prompt that are not visual.
    faults
        Receives what cannot be.
    """

    number: int
    facts: ModelFacts
    encoder: EncoderDepth
    decoder: DecoderDepth
    keep: int | None
    text_tokens: int
    faults: Faults

    def fault(self, key: str, problem: str) -> None:
        """Note a problem with a key of this stage, or with all of it when `key` is empty."""
        self.faults.add(self.number, key, problem)

    def kept(self, keep: int | float | tuple[int, ...] | None, tokens: int) -> int:
        """Resolve what an image keeps to what each run of `tokens` keeps; a budget comes first."""
        if isinstance(keep, tuple):
            raise AssertionError("a plan is of a recipe at one of its budgets")
        if self.keep is not None:
            keep = self.keep * self.facts.layout.spans
        if isinstance(keep, float):
            return max(1, round(keep * tokens))
        if keep is None:  # a stage without keep and without a budget is refused elsewhere
            return tokens
        return self.per_span(keep, tokens)

    def per_span(self, keep: int, tokens: int) -> int:
        """Resolve `keep` tokens of an image to those of each run of `tokens`."""
        spans = self.facts.layout.spans
        if keep > spans * tokens:
            whole = spans * tokens
            self.fault("keep", f"cannot keep {keep} of {whole} visual tokens; give at most {whole} or a fraction")
            return tokens
        if keep % spans:
            near = max(1, round(keep / spans)) * spans
            problem = (
                f"{keep} tokens cannot be shared equally by the {spans} tiles of an image; give {near} or a fraction"
            )
            self.fault("keep", problem)
        return max(1, keep // spans)


@dataclass(frozen=True)
class Rules:
    """What a stage may look at before a model is known.

    Attributes
    ----------
    number, place
        Of the stage in the recipe, and in the pipeline.
    earlier
        The stages before it in the recipe, in order.
    facts
        The model's sizes, where one is known: advice then fits it.
    faults
        Receives what cannot be.
    """

    number: int
    place: Place
    earlier: tuple[StageEntry, ...]
    facts: ModelFacts | None
    faults: Faults

    def fault(self, key: str, problem: str) -> None:
        """Note a problem with a key of this stage, or with all of it when `key` is empty."""
        self.faults.add(self.number, key, problem)

    def find(self, which: Callable[[StageEntry], bool]) -> list[int]:
        """Return the numbers of the stages that data meets before this one and that `which` is true of."""
        return [n for n, entry in enumerate(self.earlier) if entry.place <= self.place and which(entry)]

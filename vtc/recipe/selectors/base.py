"""What the recipe entries of all selectors have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtc.facts.layout import Grid
from vtc.facts.model import ModelFacts
from vtc.facts.views import views_of
from vtc.recipe.needs import Needs, Reading
from vtc.recipe.values import Written

Fault = Callable[[str, str], None]
"""Called with a key, empty for the whole entry, and what is wrong with its value."""
Product = tuple[int, int, int]
"""A matrix product: rows, inner size, columns."""


class SelectorEntry(Written):
    """A selector as a recipe names it, and what ``vtc ls selectors`` tells of the method."""

    name: str
    summary: ClassVar[str]
    paper: ClassVar[str] = "baseline"
    reads: ClassVar[str] = "nothing"
    """What it looks at beyond the features, in words."""
    where: ClassVar[str]
    text_aware: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    """Tokens that go on also hold something of those that do not; each stands at one of their places."""

    @property
    def seeks_question(self) -> bool:
        """Whether it looks for the question in the text after an image."""
        return self.text_aware


@dataclass(frozen=True)
class Choice:
    """A choice of `keep` of `tokens` visual tokens of `grids`, for a question of `text` tokens.

    There are no grids once tokens have been pruned.
    """

    tokens: int
    keep: int
    text: int
    facts: ModelFacts
    grids: Sequence[Grid]


class EncoderSelectorEntry(SelectorEntry):
    """A selector between the vision encoder and the decoder."""

    where = "after the encoder"
    reads_encoder_grid: ClassVar[bool] = False
    """Its scores belong to the encoder's own patches, so no other stage may have replaced those."""
    projects: ClassVar[bool] = False
    """It looks at all tokens in the decoder's space, so the projector runs before it."""
    after_projector: ClassVar[bool] = False
    """It looks at nothing but tokens in the decoder's space, and so may choose among those of a `project` stage."""
    compares_patches: ClassVar[bool] = False
    """It looks at attention of every patch to every other, so all must have seen each other."""
    needs_cls: ClassVar[bool] = False
    across_views: ClassVar[bool] = False
    """It shares its budget between a full view and its crops, where an image is more than one view."""
    across_frames: ClassVar[bool] = False
    """It compares the frames of a clip."""

    @property
    def layers_named(self) -> tuple[int, ...]:
        """Encoder layers that the recipe names by number, negative ones from the end."""
        return ()

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        """Return what it reads of encoder layers, each under the name by which the selector asks for it.

        Parameters
        ----------
        facts
            The model's sizes.
        running
            Encoder layers that run, ascending; the output of the last one is what selectors and projector see.
        """
        return {}

    def needs(self, readings: Mapping[str, Reading]) -> Needs:
        """Return everything that it looks at, given what it reads of the encoder."""
        return Needs(frozenset(readings.values()), projected=self.projects, text=self.text_aware)

    def check(self, facts: ModelFacts, running: Sequence[int], fault: Fault) -> None:
        """Report values that do not fit a model: by default, named layers that do not run."""
        for layer in self.layers_named:
            if layer % facts.encoder.layers not in running:
                these = ", ".join(map(str, running))
                fault("", f"encoder layer {layer} does not run here; these do: {these}")

    def products(self, choice: Choice) -> Iterable[Product]:
        """Return the matrix products that a choice is made of."""
        return ()

    def parameters(self, facts: ModelFacts) -> int:
        """Return the number of parameters of its own."""
        return 0

    def described(self, layers: Sequence[int]) -> str:
        """Say in a few words what it does on a model, where it reads encoder `layers`."""
        return f"{self.name}, reading encoder {listing(layers)}" if layers else self.name

    @classmethod
    def why_not(cls, facts: ModelFacts, *, pruned: bool) -> str | None:
        """Say why it cannot choose among a model's visual tokens, to follow its name; None where it can.

        Parameters
        ----------
        facts
            The model's sizes.
        pruned
            Whether an earlier stage has pruned already, so that grids are no longer whole.
        """
        layout = facts.layout
        if cls.needs_cls and not facts.encoder.has_cls:
            return "needs a CLS token, and this encoder has none"
        if cls.across_frames:
            if layout.frames == 1 or layout.spans > 1:
                return f"needs the frames of a video in one run of tokens, and {facts.model_type} has none here"
            if pruned:
                return "compares whole frames, and an earlier stage has pruned those"
        if cls.compares_patches and layout.grids != (layout.view_grid,):
            views_here = f"the {layout.span_views} views of an image here never see each other"
            return f"ranks patches by attention among them, and {views_here}"
        if cls.across_views:
            try:
                views = views_of(layout)
            except ValueError as error:
                return f"shares its budget between a full view and its crops, and {error}"
            if views and pruned:
                return "shares its budget between whole views, and an earlier stage has pruned those"
        return None


class DecoderSelectorEntry(SelectorEntry):
    """A selector before a decoder layer."""

    where = "in the decoder"
    text_aware = True
    reads_before: ClassVar[bool] = False
    """It looks at the layer before the cut, whose input the segment there then gives out; else at the one after."""
    query: ClassVar[str] = "text_after_image"

    @property
    def query_tokens(self) -> str:
        """Which text tokens it is given as queries: ``text_after_image``, ``all_text`` or ``last_token``."""
        return self.query

    @property
    def seeks_question(self) -> bool:
        """Whether it looks for the question in the text after an image."""
        return self.query_tokens == "text_after_image"

    def rows(self, text: int, visual: int) -> int:
        """Return how many rows of attention it computes, of `text` and `visual` tokens."""
        return 1 if self.query_tokens == "last_token" else text

    def parameters(self) -> int:
        """Return the number of parameters of its own."""
        return 0

    @property
    def described(self) -> str:
        """What it does, in a few words."""
        return self.name


def listing(layers: Sequence[int]) -> str:
    """Name layers: ``layer 3``, ``layers 3, 4``."""
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers)) or 'none'}"

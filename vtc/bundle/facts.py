"""What a manifest says of a bundle's images, answers and decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from vtc.inputs.generation import GenerationRules
from vtc.inputs.layouts import Offer
from vtc.inputs.pixels import MAX_PIXELS, PixelSpec
from vtc.inputs.positions import PositionRule

Form = Literal["portable", "ort", "opset23"]
"""How graphs say what they compute: in standard operators that every runtime takes, in ONNX Runtime's own, or in those
that ONNX has for attention, norms and rotary positions from operator set 23 on."""
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class Variant:
    """A set of a bundle's graphs: a precision in a form.

    Attributes
    ----------
    name : str
        What the user calls it: the precision, and behind a dash the form unless it is portable.
    precision : str
        How weights are stored and what is computed in; see :mod:`exporters.precision`.
    form : str
    session : dict of str to str
        Entries of ONNX Runtime's session configuration that its graphs are to be run with.
    in_place : tuple of str
        Decoder segments whose graphs write the cache where they read it.
    """

    name: str
    precision: str
    form: Form = "portable"
    session: dict[str, str] = field(default_factory=dict, hash=False)
    in_place: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a name that says something else."""
        if self.name != variant_name(self.precision, self.form):
            raise ValueError(f"'{self.name}' is no name of {self.precision} graphs in the form {self.form}")


def variant_name(precision: str, form: str) -> str:
    """What a variant is called."""
    return precision if form == "portable" else f"{precision}-{form}"


def precision_and_form(variant: str) -> tuple[str, Form]:
    """What a variant's name says; :func:`variant_name` is its inverse."""
    precision, _, form = variant.rpartition("-")
    for one in FORMS:
        if form == one != "portable" and precision:
            return precision, one
    return variant, "portable"


@dataclass(frozen=True)
class ServedImage:
    """Images (or clips) of one layout that a bundle serves, and what becomes of them.

    Attributes
    ----------
    size : (int, int)
        Rows and columns of pixels of the images that it is made for; others are fitted in.
    frames : int
        Images that make up one input; above 1 it is a clip.
    suffix : str
        Ending of the names of the graphs that are made for this layout: the vision encoder and what prunes in the
        decoder.
    pixels : PixelSpec
        How an image becomes the pixels that the vision graph takes.
    placeholder : str
        What stands for an image in a prompt.
    prompt_parts : tuple of str
        What it is replaced by: text before, between and after the runs of visual tokens that an image takes.
    token : str
    token_id : int
        Of one visual token.
    grids : tuple of (int, int)
        Rows and columns of the original model's visual tokens in one run.
    tokens_per_span, keep_per_span : int
        Visual tokens in one run of placeholders, of the original model and of this one.
    segment_tokens_per_span : tuple of int
        Visual tokens of one run in each decoder segment.
    positions : PositionRule
    prompt_frame : (str, str)
        What goes into every prompt after its last placeholder (at its start, where it has none), and at its end.
    alone, several : bool
        Whether it is for an image that is alone in its prompt, and for each of several.
    budget : int or None
        Which of the recipe's budgets it is at; None where that has one for all questions.
    per_image, per_question : str
        Names of the vision graphs: the one that is run once an image, whatever is asked, and the one that reads the
        question, and goes on with what the first has made where there are both; empty where there is none.
    """

    size: tuple[int, int]
    frames: int
    suffix: str
    pixels: PixelSpec
    placeholder: str
    prompt_parts: tuple[str, ...]
    token: str
    token_id: int
    grids: tuple[tuple[int, int], ...]
    tokens_per_span: int
    keep_per_span: int
    segment_tokens_per_span: tuple[int, ...]
    positions: PositionRule
    prompt_frame: tuple[str, str] = ("", "")
    alone: bool = True
    several: bool = True
    budget: int | None = None
    per_image: str = ""
    per_question: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers that no layout has."""
        counts = {
            "size": self.size,
            "frames": (self.frames,),
            "tokens_per_span": (self.tokens_per_span,),
            "grids": sum(self.grids, ()),
        }
        if math.prod(self.size) * self.frames > MAX_PIXELS:
            raise ValueError(f"size is beyond {MAX_PIXELS // 2**20} megapixels")
        if wrong := next((name for name, numbers in counts.items() if min(numbers, default=1) < 1), None):
            raise ValueError(f"{wrong} must be 1 or more")
        if self.token_id < 0:
            raise ValueError("token_id is negative")
        kept = (self.keep_per_span, *self.segment_tokens_per_span)
        if min(kept) < 0 or max(kept) > self.tokens_per_span or self.spans < 1:
            raise ValueError("keeps other numbers of tokens than there are")

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of its vision graphs, in the order in which data meets them."""
        named = tuple(filter(None, (self.per_image, self.per_question)))
        return named or (f"vision_encoder{self.suffix}",)  # of which earlier manifests say nothing

    @property
    def offer(self) -> Offer:
        """What it is for, as a prompt's images choose."""
        return Offer(self.size, self.frames, self.alone, self.several)

    @property
    def spans(self) -> int:
        """Runs of visual tokens that an image takes."""
        return len(self.prompt_parts) - 1

    @property
    def kind(self) -> Literal["image", "video"]:
        """What a chat template calls it."""
        return "video" if self.frames > 1 else "image"


@dataclass(frozen=True)
class GenerationFacts:
    """What generation needs to know: special tokens and the decoder's sizes.

    Attributes
    ----------
    context : int
        Longest sequence, in positions, that the decoder was made for.
    width : int
        Values of a hidden state.
    layers, kv_heads, head_dim : int
        Decoder layers kept, and the shape of their cache.
    bidirectional : str
        Which tokens attend to each other in both directions, see :func:`vtc.inputs.schedule.attention_blocks`.
    rules : GenerationRules
        What the checkpoint's generation settings ask of answers.
    """

    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    bos_token_id: int | None
    context: int
    width: int
    kv_heads: int
    head_dim: int
    layers: int
    bidirectional: Literal["none", "image", "prompt"]
    rules: GenerationRules

    def __post_init__(self) -> None:
        """Refuse numbers that no decoder and no token has."""
        for name in ("context", "width", "kv_heads", "head_dim", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more")
        if min(*self.eos_token_ids, self.pad_token_id, self.bos_token_id or 0) < 0:
            raise ValueError("a special token's number is negative")


@dataclass(frozen=True)
class SelectorFacts:
    """A graph between two segments.

    Attributes
    ----------
    kind : str
        ``gather`` takes hidden states, ``merge`` those of all tokens and of some, ``prune`` hidden states, mask and
        positions; after them each takes its arrays of :class:`vtc.inputs.schedule.SegmentSchedule`.
    queries : str or None
        For ``prune``, which text tokens rank the visual ones; see :func:`vtc.inputs.schedule.query_tokens`.
    """

    graph: str
    kind: Literal["gather", "merge", "prune"]
    queries: str | None = None


@dataclass(frozen=True)
class StepFacts:
    """A second graph of a segment with a mixture of experts, for a token of each row.

    It computes what the segment's own does, by the experts that the tokens chose alone; that one computes them all.

    Attributes
    ----------
    graph : str
    rows : int
        Tokens up to which it is the faster one.
    """

    graph: str
    rows: int


@dataclass(frozen=True)
class SegmentFacts:
    """A run of decoder layers.

    Attributes
    ----------
    layers : tuple of int
        Numbers among the kept layers; those of the KV tensors' names.
    sees : str
        ``all`` tokens that there still are, or ``text`` tokens only.
    selector : SelectorFacts or None
        Applied to hidden states before this segment, in prefill only.
    step : StepFacts or None
        Where it has a mixture of experts; of which earlier manifests say nothing.
    """

    graph: str
    layers: tuple[int, ...]
    sees: Literal["all", "text"]
    selector: SelectorFacts | None
    step: StepFacts | None = None

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs that compute it."""
        return (self.graph,) if self.step is None else (self.graph, self.step.graph)

"""Selectors inside the decoder, as a recipe names them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vtc.recipe.selectors.base import SelectorEntry, TrainedSelectorEntry
from vtc.recipe.values import Written


class DecoderSelectorEntry(SelectorEntry):
    """A selector before a decoder layer."""

    where = "in the decoder"
    text_aware = True

    asking: ClassVar[str] = "text_after_image"

    @property
    def query_tokens(self) -> str:
        """Which text tokens are handed to it: ``text_after_image``, ``all_text`` or ``last_token``."""
        return self.asking

    def rows(self, text: int, visual: int) -> int:
        """Rows of attention that it computes, of `text` and `visual` tokens."""
        return 1 if self.query_tokens == "last_token" else text


class TextAttentionEntry(DecoderSelectorEntry):
    """The visual tokens that the prompt's text attends to in the decoder layer behind the cut.

    ``queries`` says which text tokens ask: all of those behind the image, all text, the last token (FastV,
    PyramidDrop), or SparseVLM's ``raters``, those behind the image that resemble it more than the average one. Without
    ``rope`` queries and keys are compared without their rotary positions (FEATHER), which takes out the preference for
    near tokens.

    Based on LearnPruner (arXiv 2604.23950); FastV (2403.06764), PyramidDrop (2410.17247), SparseVLM (2410.04417) and
    FEATHER (2412.13180) for the variants.
    """

    summary = "highest attention from the prompt's text"
    paper = "LearnPruner (arXiv 2604.23950); FastV, PyramidDrop, SparseVLM, FEATHER for its variants"
    needs = "queries and keys of one decoder layer"
    name: Literal["text_attention"] = "text_attention"
    queries: Literal["text_after_image", "all_text", "last_token", "raters"] = "text_after_image"
    rope: bool = True

    @property
    def query_tokens(self) -> str:
        return "text_after_image" if self.queries == "raters" else self.queries


class FastVEntry(DecoderSelectorEntry):
    """The visual tokens that the prompt's last token attends to in the decoder layer in front of the cut.

    Based on FastV (arXiv 2403.06764); the authors cut before layer 2 or 3.
    """

    summary = "highest attention from the last token, layer in front of the cut"
    paper = "FastV (arXiv 2403.06764)"
    needs = "queries and keys of the decoder layer in front of the cut"
    asking = "last_token"
    name: Literal["fastv"] = "fastv"


class PyramidDropEntry(DecoderSelectorEntry):
    """The visual tokens that the prompt's last token attends to in the decoder layer behind the cut.

    Based on PyramidDrop (arXiv 2410.17247), which cuts three times, by half each; original positions are kept.
    """

    summary = "highest attention from the last token, layer behind the cut"
    paper = "PyramidDrop (arXiv 2410.17247)"
    needs = "queries and keys of the decoder layer behind the cut"
    asking = "last_token"
    name: Literal["pyramiddrop"] = "pyramiddrop"


class FeatherEntry(DecoderSelectorEntry):
    """Attention from the last token without rotary positions, and the share ``uniform`` of the budget spread evenly.

    Based on FEATHER (arXiv 2412.13180).
    """

    summary = "attention from the last token without positions, and a uniform share"
    paper = "FEATHER (arXiv 2412.13180)"
    needs = "queries and keys of the decoder layer in front of the cut"
    asking = "last_token"
    name: Literal["feather"] = "feather"
    uniform: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.33


class SparseVLMEntry(DecoderSelectorEntry):
    """Attention from the text tokens that resemble the image, in the layer in front of the cut.

    The share ``recycle`` of the dropped tokens comes back as a few cluster means, inside the budget.

    Based on SparseVLM (arXiv 2410.04417); ties are resolved by the lowest index in place of noise.
    """

    summary = "attention from text that resembles the image; dropped tokens recycled"
    paper = "SparseVLM (arXiv 2410.04417)"
    needs = "queries and keys of the decoder layer in front of the cut"
    name: Literal["sparsevlm"] = "sparsevlm"
    recycle: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.3


class VisionDropEntry(DecoderSelectorEntry):
    """Attention from the image's own tokens; for the share ``contextual`` of the budget others merge in.

    Based on VisionDrop (arXiv 2506.22283).
    """

    summary = "attention from visual tokens, and contextual tokens that others merge into"
    paper = "VisionDrop (arXiv 2506.22283)"
    needs = "queries and keys of the decoder layer behind the cut"
    text_aware = False
    asking = "last_token"
    name: Literal["visiondrop"] = "visiondrop"
    contextual: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.15
    as_published: bool = False

    def rows(self, text: int, visual: int) -> int:
        return visual


class DARTEntry(DecoderSelectorEntry):
    """Tokens that resemble a few pivots least, the pivots being image and text tokens of large keys.

    Based on DART (arXiv 2502.11494), which cuts before layer 2.
    """

    summary = "tokens that duplicate pivot tokens least"
    paper = "DART (arXiv 2502.11494)"
    needs = "keys of the decoder layer in front of the cut"
    name: Literal["dart"] = "dart"
    pivots_image: Annotated[int, Field(ge=1)] = 4
    pivots_text: Annotated[int, Field(ge=0)] = 4
    as_published: bool = False

    def rows(self, text: int, visual: int) -> int:
        return 0


class RelevanceTraining(Written):
    """How a relevance network is trained: ``epochs`` over at most ``questions`` about each of ``images`` images.

    Each question is explained once, by gradients through the whole decoder; the network itself is small. It is checked
    on as many questions about each of ``validation`` other images.
    """

    images: Annotated[int, Field(ge=1)] = 1000
    questions: Annotated[int, Field(ge=1)] = 2
    validation: Annotated[int, Field(ge=1)] = 100
    epochs: Annotated[int, Field(ge=1)] = 100
    batch: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class RelevanceEntry(DecoderSelectorEntry, TrainedSelectorEntry):
    """What a small network, taught by explanations of the whole model, reads off the attention of a shallow layer.

    It reads the decoder layer in front of the cut. ``checkpoint`` is a safetensors file beside the recipe; ``auto``
    takes the one that ships with the model, if there is one, and trains one as ``training`` says, if there is none.

    Based on Lei et al. 2025 (arXiv 2506.01097), who cut in front of the first layer.
    """

    summary = "relevance that a trained network reads off the text's attention"
    paper = "Explainability-based compression (arXiv 2506.01097)"
    needs = "queries and keys of the decoder layer in front of the cut and a trained checkpoint"
    name: Literal["relevance"] = "relevance"
    training: RelevanceTraining | None = None

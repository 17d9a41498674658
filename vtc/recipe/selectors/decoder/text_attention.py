"""TextAttention in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from typing import Literal

from vtc.recipe.selectors.base import DecoderSelectorEntry


class TextAttentionEntry(DecoderSelectorEntry):
    """The visual tokens that the prompt's text attends to in the decoder layer after the cut.

    Based on LearnPruner (arXiv 2604.23950); FastV (2403.06764), PyramidDrop (2410.17247), SparseVLM (2410.04417) and
    FEATHER (2412.13180) for the variants.
    """

    summary = "highest attention from the prompt's text"
    paper = "LearnPruner (arXiv 2604.23950); FastV, PyramidDrop, SparseVLM, FEATHER for its variants"
    reads = "queries and keys of one decoder layer"
    name: Literal["text_attention"] = "text_attention"
    queries: Literal["text_after_image", "all_text", "last_token", "raters"] = "text_after_image"
    """Which text tokens ask: all of those after the image, all text, the last token (FastV, PyramidDrop), or
    SparseVLM's ``raters``, those after the image that resemble it more than the average one."""
    rope: bool = True
    """Whether queries and keys are compared with their rotary positions; without them (FEATHER) there is no preference
    for near tokens."""

    @property
    def query_tokens(self) -> str:
        return "text_after_image" if self.queries == "raters" else self.queries

    @property
    def described(self) -> str:
        positions = "" if self.rope else ", without rotary positions"
        return f"text_attention of {self.queries.replace('_', ' ')}{positions}"

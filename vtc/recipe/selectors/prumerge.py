"""PruMerge in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from vtc.facts.model import ModelFacts
from vtc.recipe.layers import after_features
from vtc.recipe.needs import Reading
from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product


class PruMergeEntry(EncoderSelectorEntry):
    """Most attended tokens, each with its nearest tokens merged in, and one token for all that are dropped.

    Based on LLaVA-PruMerge (arXiv 2403.15388), at a fixed budget.
    """

    merges = True
    summary = "highest CLS attention with neighbours merged in, one token for the rest"
    paper = "LLaVA-PruMerge (arXiv 2403.15388)"
    reads = "one-head CLS attention and keys of the encoder layer after the features"
    reads_encoder_grid = True
    needs_cls = True
    name: Literal["prumerge"] = "prumerge"
    spatial: bool = False
    """Whether it is PruMerge+: all but the share ``important`` of the budget goes to places spread over the image."""
    important: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.25
    """Share of the budget that goes by attention, with ``spatial``."""
    as_published: bool = False
    """Whether it computes as the authors' code does: weights are the attention itself, not scaled to sum to 1 (a kept
    token hardly changes, and the additional one is far shorter than a token of the encoder), and neighbours may be kept
    tokens. It also spreads as that code does: every s-th token from the first on, the last left out, s = int(int(N / n)
    / 3) where n of N tokens go by attention."""

    def readings(self, facts: ModelFacts, running: Sequence[int]) -> Mapping[str, Reading]:
        layer = after_features(facts.encoder, running)
        return {"attention": Reading("one_head_cls_attention", layer), "keys": Reading("full_keys", layer)}

    def products(self, choice: Choice) -> Iterable[Product]:
        tokens, width = choice.tokens, choice.facts.token_width
        return (choice.keep - 1, width, tokens), (choice.keep, tokens, width)

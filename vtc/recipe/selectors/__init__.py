"""What a user may write about a selector in a recipe: one small model each, and the tables of them.

A new one is a class in :mod:`vtc.recipe.selectors.encoder` or :mod:`vtc.recipe.selectors.decoder`, and a place in
`AnySelector` or `AnyDecoderSelector`.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from vtc.recipe.selectors.base import SelectorEntry, TrainedSelectorEntry
from vtc.recipe.selectors.decoder import (
    DARTEntry,
    DecoderSelectorEntry,
    FastVEntry,
    FeatherEntry,
    PyramidDropEntry,
    RelevanceEntry,
    RelevanceTraining,
    SparseVLMEntry,
    TextAttentionEntry,
    VisionDropEntry,
)
from vtc.recipe.selectors.encoder import (
    CDPrunerEntry,
    ClsAttentionEntry,
    ClusteringEntry,
    DivPruneEntry,
    EncoderSelectorEntry,
    EVSEntry,
    FoPruEntry,
    GlobalCom2Entry,
    HiPruneEntry,
    HiREDEntry,
    LearnedEntry,
    MMTokEntry,
    PoolingEntry,
    PruMergeEntry,
    PrunerTraining,
    RandomEntry,
    ToDREEntry,
    ToMeEntry,
    TurboEntry,
    UniformEntry,
    VisionZipEntry,
    VisPrunerEntry,
    VScanEntry,
)

__all__ = [
    "CUT_SELECTOR",
    "DECODER_SELECTORS",
    "ENCODER_SELECTORS",
    "SELECTORS",
    "AnyDecoderSelector",
    "AnySelector",
    "CDPrunerEntry",
    "ClsAttentionEntry",
    "ClusteringEntry",
    "DARTEntry",
    "DecoderSelector",
    "DecoderSelectorEntry",
    "DivPruneEntry",
    "EVSEntry",
    "EncoderSelectorEntry",
    "FastVEntry",
    "FeatherEntry",
    "FoPruEntry",
    "GlobalCom2Entry",
    "HiPruneEntry",
    "HiREDEntry",
    "LearnedEntry",
    "MMTokEntry",
    "PoolingEntry",
    "PruMergeEntry",
    "PrunerTraining",
    "PyramidDropEntry",
    "RandomEntry",
    "RelevanceEntry",
    "RelevanceTraining",
    "Selector",
    "SelectorEntry",
    "SparseVLMEntry",
    "TextAttentionEntry",
    "ToDREEntry",
    "ToMeEntry",
    "TrainedSelectorEntry",
    "TurboEntry",
    "UniformEntry",
    "VScanEntry",
    "VisPrunerEntry",
    "VisionDropEntry",
    "VisionZipEntry",
]

AnySelector = (
    RandomEntry
    | UniformEntry
    | PoolingEntry
    | ClsAttentionEntry
    | LearnedEntry
    | HiPruneEntry
    | FoPruEntry
    | VisPrunerEntry
    | VScanEntry
    | DivPruneEntry
    | CDPrunerEntry
    | ToDREEntry
    | MMTokEntry
    | VisionZipEntry
    | PruMergeEntry
    | ToMeEntry
    | TurboEntry
    | ClusteringEntry
    | HiREDEntry
    | GlobalCom2Entry
    | EVSEntry
)
AnyDecoderSelector = (
    TextAttentionEntry
    | FastVEntry
    | PyramidDropEntry
    | FeatherEntry
    | SparseVLMEntry
    | VisionDropEntry
    | DARTEntry
    | RelevanceEntry
)


def _by_name(union: Any) -> dict[str, Any]:
    return {model.model_fields["name"].default: model for model in get_args(union)}


ENCODER_SELECTORS: dict[str, type[EncoderSelectorEntry]] = _by_name(AnySelector)
DECODER_SELECTORS: dict[str, type[DecoderSelectorEntry]] = _by_name(AnyDecoderSelector)
SELECTORS: dict[str, type[SelectorEntry]] = {**ENCODER_SELECTORS, **DECODER_SELECTORS}


CUT_SELECTOR = "text_attention"
"""What a cut uses if nothing else is said: options without a name are its."""


def _expand_shorthand(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _expand_in_decoder(value: object) -> object:
    return {"name": CUT_SELECTOR, **value} if isinstance(value, dict) else _expand_shorthand(value)


Selector = Annotated[AnySelector, Field(discriminator="name"), BeforeValidator(_expand_shorthand)]
DecoderSelector = Annotated[AnyDecoderSelector, Field(discriminator="name"), BeforeValidator(_expand_in_decoder)]

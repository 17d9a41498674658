"""What a user may write about a selector in a recipe: one small model each, and the tables of them.

A new one is a class in :mod:`vtc.recipe.selectors.encoder` or :mod:`vtc.recipe.selectors.decoder`, and a place in
`AnySelector` or `AnyDecoderSelector`.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from vtc.recipe.selectors.base import SelectorEntry, TrainedSelectorEntry
from vtc.recipe.selectors.decoder import (
    DARTSelector,
    DecoderSelectorEntry,
    FastVSelector,
    FeatherSelector,
    PyramidDropSelector,
    RelevanceSelector,
    RelevanceTraining,
    SparseVLMSelector,
    TextAttentionSelector,
    VisionDropSelector,
)
from vtc.recipe.selectors.encoder import (
    CDPrunerSelector,
    ClsAttentionSelector,
    ClusteringSelector,
    DivPruneSelector,
    EncoderSelectorEntry,
    EVSSelector,
    FoPruSelector,
    GlobalCom2Selector,
    HiPruneSelector,
    HiREDSelector,
    LearnedSelector,
    MMTokSelector,
    PoolingSelector,
    PruMergeSelector,
    PrunerTraining,
    RandomSelector,
    ToDRESelector,
    ToMeSelector,
    TurboSelector,
    UniformSelector,
    VisionZipSelector,
    VisPrunerSelector,
    VScanSelector,
)

__all__ = [
    "CUT_SELECTOR",
    "DECODER_SELECTORS",
    "ENCODER_SELECTORS",
    "SELECTORS",
    "AnyDecoderSelector",
    "AnySelector",
    "CDPrunerSelector",
    "ClsAttentionSelector",
    "ClusteringSelector",
    "DARTSelector",
    "DecoderSelector",
    "DecoderSelectorEntry",
    "DivPruneSelector",
    "EVSSelector",
    "EncoderSelectorEntry",
    "FastVSelector",
    "FeatherSelector",
    "FoPruSelector",
    "GlobalCom2Selector",
    "HiPruneSelector",
    "HiREDSelector",
    "LearnedSelector",
    "MMTokSelector",
    "PoolingSelector",
    "PruMergeSelector",
    "PrunerTraining",
    "PyramidDropSelector",
    "RandomSelector",
    "RelevanceSelector",
    "RelevanceTraining",
    "Selector",
    "SelectorEntry",
    "SparseVLMSelector",
    "TextAttentionSelector",
    "ToDRESelector",
    "ToMeSelector",
    "TrainedSelectorEntry",
    "TurboSelector",
    "UniformSelector",
    "VScanSelector",
    "VisPrunerSelector",
    "VisionDropSelector",
    "VisionZipSelector",
]

AnySelector = (
    RandomSelector
    | UniformSelector
    | PoolingSelector
    | ClsAttentionSelector
    | LearnedSelector
    | HiPruneSelector
    | FoPruSelector
    | VisPrunerSelector
    | VScanSelector
    | DivPruneSelector
    | CDPrunerSelector
    | ToDRESelector
    | MMTokSelector
    | VisionZipSelector
    | PruMergeSelector
    | ToMeSelector
    | TurboSelector
    | ClusteringSelector
    | HiREDSelector
    | GlobalCom2Selector
    | EVSSelector
)
AnyDecoderSelector = (
    TextAttentionSelector
    | FastVSelector
    | PyramidDropSelector
    | FeatherSelector
    | SparseVLMSelector
    | VisionDropSelector
    | DARTSelector
    | RelevanceSelector
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

"""What a user may write about a selector: one file a method, and the tables of them.

A new selector is a file here, or in `decoder`, and its class in the table of its place.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from vtc.recipe.selectors.base import DecoderSelectorEntry, EncoderSelectorEntry, SelectorEntry
from vtc.recipe.selectors.cdpruner import CDPrunerEntry
from vtc.recipe.selectors.cls_attention import ClsAttentionEntry
from vtc.recipe.selectors.clustering import ClusteringEntry
from vtc.recipe.selectors.decoder.dart import DARTEntry
from vtc.recipe.selectors.decoder.fastv import FastVEntry
from vtc.recipe.selectors.decoder.feather import FeatherEntry
from vtc.recipe.selectors.decoder.pyramiddrop import PyramidDropEntry
from vtc.recipe.selectors.decoder.relevance import RelevanceEntry
from vtc.recipe.selectors.decoder.sparsevlm import SparseVLMEntry
from vtc.recipe.selectors.decoder.text_attention import TextAttentionEntry
from vtc.recipe.selectors.decoder.visiondrop import VisionDropEntry
from vtc.recipe.selectors.divprune import DivPruneEntry
from vtc.recipe.selectors.evs import EVSEntry
from vtc.recipe.selectors.fopru import FoPruEntry
from vtc.recipe.selectors.globalcom2 import GlobalCom2Entry
from vtc.recipe.selectors.hiprune import HiPruneEntry
from vtc.recipe.selectors.hired import HiREDEntry
from vtc.recipe.selectors.learned import LearnedEntry
from vtc.recipe.selectors.mmtok import MMTokEntry
from vtc.recipe.selectors.pooling import PoolingEntry
from vtc.recipe.selectors.prumerge import PruMergeEntry
from vtc.recipe.selectors.random import RandomEntry
from vtc.recipe.selectors.todre import ToDREEntry
from vtc.recipe.selectors.tome import ToMeEntry
from vtc.recipe.selectors.turbo import TurboEntry
from vtc.recipe.selectors.uniform import UniformEntry
from vtc.recipe.selectors.visionzip import VisionZipEntry
from vtc.recipe.selectors.vispruner import VisPrunerEntry
from vtc.recipe.selectors.vscan import VScanEntry

__all__ = [
    "DECODER_SELECTORS",
    "DEFAULT_DECODER_SELECTOR",
    "ENCODER_SELECTORS",
    "SELECTORS",
    "AnyDecoderSelector",
    "AnyEncoderSelector",
    "CDPrunerEntry",
    "ClsAttentionEntry",
    "ClusteringEntry",
    "DARTEntry",
    "DecoderSelector",
    "DecoderSelectorEntry",
    "DivPruneEntry",
    "EVSEntry",
    "EncoderSelector",
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
    "PyramidDropEntry",
    "RandomEntry",
    "RelevanceEntry",
    "SelectorEntry",
    "SparseVLMEntry",
    "TextAttentionEntry",
    "ToDREEntry",
    "ToMeEntry",
    "TurboEntry",
    "UniformEntry",
    "VScanEntry",
    "VisPrunerEntry",
    "VisionDropEntry",
    "VisionZipEntry",
]

AnyEncoderSelector = (
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


ENCODER_SELECTORS: dict[str, type[EncoderSelectorEntry]] = _by_name(AnyEncoderSelector)
DECODER_SELECTORS: dict[str, type[DecoderSelectorEntry]] = _by_name(AnyDecoderSelector)
SELECTORS: dict[str, type[SelectorEntry]] = {**ENCODER_SELECTORS, **DECODER_SELECTORS}

DEFAULT_DECODER_SELECTOR = "text_attention"
"""What a cut uses if nothing else is said: options without a name are its."""


def _expand_shorthand(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _expand_in_decoder(value: object) -> object:
    return {"name": DEFAULT_DECODER_SELECTOR, **value} if isinstance(value, dict) else _expand_shorthand(value)


EncoderSelector = Annotated[AnyEncoderSelector, Field(discriminator="name"), BeforeValidator(_expand_shorthand)]
DecoderSelector = Annotated[AnyDecoderSelector, Field(discriminator="name"), BeforeValidator(_expand_in_decoder)]

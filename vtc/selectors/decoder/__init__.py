"""How visual tokens are chosen inside the decoder, one method per file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtc.models.base import VLMAdapter
from vtc.recipe_selectors import (
    DARTSelector,
    FastVSelector,
    FeatherSelector,
    PyramidDropSelector,
    RelevanceSelector,
    SparseVLMSelector,
    TextAttentionSelector,
    VisionDropSelector,
)
from vtc.selectors.decoder.base import DecoderSelector
from vtc.selectors.decoder.dart import DART
from vtc.selectors.decoder.fastv import FastV
from vtc.selectors.decoder.feather import FEATHER
from vtc.selectors.decoder.pyramiddrop import PyramidDrop
from vtc.selectors.decoder.relevance import Relevance
from vtc.selectors.decoder.sparsevlm import SparseVLM
from vtc.selectors.decoder.text_attention import TextAttention
from vtc.selectors.decoder.visiondrop import VisionDrop

_BUILDERS: dict[type, Callable[..., DecoderSelector]] = {
    TextAttentionSelector: lambda spec, *at: TextAttention(*at, raters=spec.queries == "raters", rope=spec.rope),
    FastVSelector: lambda _, *at: FastV(*at),
    PyramidDropSelector: lambda _, *at: PyramidDrop(*at),
    FeatherSelector: lambda spec, *at: FEATHER(*at, uniform=spec.uniform),
    SparseVLMSelector: lambda spec, *at: SparseVLM(*at, recycle=spec.recycle),
    VisionDropSelector: lambda spec, *at: VisionDrop(*at, contextual=spec.contextual, as_published=spec.as_published),
    DARTSelector: lambda spec, *at: DART(
        *at, pivots_image=spec.pivots_image, pivots_text=spec.pivots_text, as_published=spec.as_published
    ),
    RelevanceSelector: lambda _, *at: Relevance(*at),
}


def build_decoder_selector(
    spec: Any, adapter: VLMAdapter, behind: int, before: int, checkpoint: Path | None = None, model_digest: str = ""
) -> DecoderSelector:
    """The selector that a recipe entry describes, for a cut between two decoder layers.

    Parameters
    ----------
    spec : a recipe's entry
    adapter : VLMAdapter
    behind, before : int
        Decoder layers around the cut, as the model numbers them.
    checkpoint : Path or None
        File of the trained part; None where there is none, or its tensors come later, with a compressed model's state.
    model_digest : str
        SHA-256 of the model, which a trained part must have been trained on.
    """
    if checkpoint is not None:
        return Relevance.from_checkpoint(checkpoint, adapter, behind, before, model_digest=model_digest)
    return _BUILDERS[type(spec)](spec, adapter, behind, before)

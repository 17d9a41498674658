"""How visual tokens are chosen inside the decoder, one method per file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtc.models.base import VLMAdapter
from vtc.recipe_selectors import (
    DARTSelector,
    FastVSelector,
    FeatherSelector,
    PyramidDropSelector,
    SparseVLMSelector,
    TextAttentionSelector,
    VisionDropSelector,
)
from vtc.selectors.decoder.base import DecoderSelector
from vtc.selectors.decoder.text_attention import TextAttention

_BUILDERS: dict[type, Callable[..., DecoderSelector]] = {
    TextAttentionSelector: lambda spec, *at: TextAttention(*at, raters=spec.queries == "raters", rope=spec.rope),
}


def build_decoder_selector(spec: Any, adapter: VLMAdapter, behind: int, before: int) -> DecoderSelector:
    """The selector that a recipe entry describes, for a cut between two decoder layers."""
    return _BUILDERS[type(spec)](spec, adapter, behind, before)

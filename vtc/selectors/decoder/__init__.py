"""How visual tokens are chosen inside the decoder, one method per file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vtc.models.base import VLMAdapter
from vtc.recipe.selectors import (
    DARTEntry,
    FastVEntry,
    FeatherEntry,
    PyramidDropEntry,
    RelevanceEntry,
    SparseVLMEntry,
    TextAttentionEntry,
    VisionDropEntry,
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


class _Cut(NamedTuple):
    """Where a selector acts, and the file of its trained part."""

    adapter: VLMAdapter
    behind: int
    before: int
    checkpoint: Path | None
    model_digest: str

    @property
    def place(self) -> tuple[VLMAdapter, int, int]:
        return self.adapter, self.behind, self.before


def _relevance(_: RelevanceEntry, cut: _Cut) -> DecoderSelector:
    if cut.checkpoint is None:
        return Relevance(*cut.place)
    return Relevance.from_checkpoint(cut.checkpoint, *cut.place, model_digest=cut.model_digest)


_BUILDERS: dict[type, Callable[[Any, _Cut], DecoderSelector]] = {
    TextAttentionEntry: lambda spec, cut: TextAttention(*cut.place, raters=spec.queries == "raters", rope=spec.rope),
    FastVEntry: lambda _, cut: FastV(*cut.place),
    PyramidDropEntry: lambda _, cut: PyramidDrop(*cut.place),
    FeatherEntry: lambda spec, cut: FEATHER(*cut.place, uniform=spec.uniform),
    SparseVLMEntry: lambda spec, cut: SparseVLM(*cut.place, recycle=spec.recycle),
    VisionDropEntry: lambda spec, cut: VisionDrop(
        *cut.place, contextual=spec.contextual, as_published=spec.as_published
    ),
    DARTEntry: lambda spec, cut: DART(
        *cut.place, pivots_image=spec.pivots_image, pivots_text=spec.pivots_text, as_published=spec.as_published
    ),
    RelevanceEntry: _relevance,
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
    return _BUILDERS[type(spec)](spec, _Cut(adapter, behind, before, checkpoint, model_digest))

"""How visual tokens are chosen inside the decoder, one method a file: recipe entry to module."""

from __future__ import annotations

from typing import Any

from vtc.models.base import VLMAdapter
from vtc.recipe import selectors as entries
from vtc.selectors.decoder.base import DecoderSelector
from vtc.selectors.decoder.dart import DART
from vtc.selectors.decoder.fastv import FastV
from vtc.selectors.decoder.feather import FEATHER
from vtc.selectors.decoder.pyramiddrop import PyramidDrop
from vtc.selectors.decoder.relevance import Relevance
from vtc.selectors.decoder.sparsevlm import SparseVLM
from vtc.selectors.decoder.text_attention import TextAttention
from vtc.selectors.decoder.visiondrop import VisionDrop
from vtc.tables import line

DECODER_MODULES: dict[type[entries.DecoderSelectorEntry], type[DecoderSelector[Any]]] = {
    entries.TextAttentionEntry: TextAttention,
    entries.FastVEntry: FastV,
    entries.PyramidDropEntry: PyramidDrop,
    entries.FeatherEntry: FEATHER,
    entries.SparseVLMEntry: SparseVLM,
    entries.VisionDropEntry: VisionDrop,
    entries.DARTEntry: DART,
    entries.RelevanceEntry: Relevance,
}


def build_decoder_selector(
    entry: entries.DecoderSelectorEntry, adapter: VLMAdapter, after: int, before: int
) -> DecoderSelector[Any]:
    """Make the selector that a recipe entry describes; trained parameters are empty.

    Parameters
    ----------
    entry : DecoderSelectorEntry
    adapter : VLMAdapter
    after, before : int
        Decoder layers around the cut, as the model numbers them.
    """
    return line(DECODER_MODULES, entry, "DECODER_MODULES of vtc.selectors.decoder")(entry, adapter, after, before)

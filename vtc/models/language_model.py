"""Decoders as `transformers` has them: embedding, layers, rotary positions, norm, head."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from vtc.facts import DecoderFacts
from vtc.models.base import VLMAdapter


class LanguageModel(VLMAdapter):
    """An adapter whose decoder is ``model.language_model``, of the Llama kind."""

    @property
    def _language_model(self) -> Any:
        return self.model.model.language_model

    @property
    def embed_tokens(self) -> nn.Module:
        return cast(nn.Module, self._language_model.embed_tokens)

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self._language_model.layers)

    def rotation(self, hidden: Tensor, position_ids: Tensor, windowed: bool = False) -> tuple[Tensor, Tensor]:
        rotary = self._language_model.rotary_emb
        if rotary.rope_type == "dynamic":
            # Its frequencies change with the prompt's length, but only beyond the context, which no prompt may be.
            return cast(tuple[Tensor, Tensor], inspect.unwrap(type(rotary).forward)(rotary, hidden, position_ids))
        return cast(tuple[Tensor, Tensor], rotary(hidden, position_ids))

    @property
    def final_norm(self) -> nn.Module:
        return cast(nn.Module, self._language_model.norm)

    @property
    def head(self) -> nn.Module:
        return cast(nn.Module, self.model.lm_head)


def decoder_facts(text: Any, **more: Any) -> DecoderFacts:
    """Sizes of such a decoder; what `more` names is not read from the configuration."""
    window, layers = sliding_window(text)
    facts: dict[str, Any] = {
        "layers": text.num_hidden_layers,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "kv_heads": text.num_key_value_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "ffn": text.intermediate_size,
        "vocab": text.vocab_size,
        "context": text.max_position_embeddings,
        "gated_ffn": True,
        "window": window,
        "window_layers": layers,
    }
    return DecoderFacts(**facts | more)


def sliding_window(text: Any) -> tuple[int, tuple[int, ...]]:
    """Positions that layers with a sliding window look back, and those layers; none where a window holds any prompt."""
    window = getattr(text, "sliding_window", None)
    if not window or window >= text.max_position_embeddings:
        return 0, ()
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    layers = tuple(number for number, kind in enumerate(kinds) if kind == "sliding_attention")
    return (window, layers) if layers else (0, ())

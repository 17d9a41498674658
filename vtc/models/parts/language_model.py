"""Decoders as `transformers` has them: embedding, layers, rotary positions, norm, head."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vtc.errors import ModelError
from vtc.facts.model import DecoderFacts
from vtc.models.base import VLMAdapter
from vtc.visual_tokens import gather_tokens


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

    def attention_rows(
        self, index: int, hidden: Tensor, queries: Tensor, seen: Tensor, position_ids: Tensor, *, rope: bool = True
    ) -> Tensor:
        layer: Any = self.decoder_layers[index]
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        query = self._heads(attention.q_proj(gather_tokens(normed, queries)), getattr(attention, "q_norm", None))
        key = self._heads(attention.k_proj(normed), getattr(attention, "k_norm", None))
        if rope:
            cosines, sines = self.rotation(hidden, position_ids, index in self.facts.decoder.window_layers)
            query = rotate(query, gather_tokens(cosines, queries), gather_tokens(sines, queries))
            key = rotate(key, cosines, sines)
        batch, kv_heads = key.shape[:2]
        grouped = query.reshape(batch, kv_heads, -1, key.shape[-1])
        scores = torch.matmul(grouped, key.transpose(2, 3)) * attention.scaling
        cap = getattr(attention, "attn_logit_softcapping", None)
        scores = scores if cap is None else torch.tanh(scores / cap) * cap
        scores = scores.float().reshape(batch, query.shape[1], queries.shape[1], -1)
        scores = torch.where(seen.unsqueeze(1), scores, torch.finfo(torch.float32).min)
        return torch.softmax(scores, dim=-1).mean(dim=1)

    def decoder_keys(self, index: int, hidden: Tensor, position_ids: Tensor) -> Tensor:
        windowed = index in self.facts.decoder.window_layers
        layer: Any = self.decoder_layers[index]
        attention = layer.self_attn
        key = self._heads(attention.k_proj(layer.input_layernorm(hidden)), getattr(attention, "k_norm", None))
        return rotate(key, *self.rotation(hidden, position_ids, windowed)).transpose(1, 2)

    def _heads(self, projected: Tensor, norm: nn.Module | None) -> Tensor:
        """Split (B, S, H * Dh) into heads (B, H, S, Dh)."""
        batch, length, _ = projected.shape
        heads = projected.reshape(batch, length, -1, self.facts.decoder.head_dim)
        return (heads if norm is None else norm(heads)).transpose(1, 2)


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) on heads (B, H, S, Dh), halves paired; cosines (B, S, Dh)."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return heads * cosines.unsqueeze(1) + turned * sines.unsqueeze(1)


def decoder_facts(text: Any, **more: Any) -> DecoderFacts:
    """Sizes of such a decoder; what `more` names is not read from the configuration.

    Raises
    ------
    ModelError
        If only some of its layers are mixtures of experts.
    """
    window, layers = sliding_window(text)
    experts = getattr(text, "num_experts", None) or 1
    if experts > 1 and (getattr(text, "decoder_sparse_step", 1) != 1 or getattr(text, "mlp_only_layers", None)):
        raise ModelError("only mixtures of experts in all layers are supported (decoder_sparse_step 1)")
    facts: dict[str, Any] = {
        "layers": text.num_hidden_layers,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "kv_heads": text.num_key_value_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "ffn": getattr(text, "moe_intermediate_size", text.intermediate_size),
        "vocab": text.vocab_size,
        "context": text.max_position_embeddings,
        "gated_ffn": True,
        "window": window,
        "window_layers": layers,
        "experts": experts,
        "active_experts": text.num_experts_per_tok if experts > 1 else 1,
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

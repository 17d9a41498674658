"""LLaVA: a vision tower, a two-layer projector, a decoder of the Llama kind (Liu et al. 2023, arXiv 2310.03744).

LLaVA-1.5 has a CLIP tower and a Llama decoder. Later checkpoints of the same class put SigLIP in front, whose encoder
has no CLS token, or Qwen2 or Mistral behind.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from vtc.errors import ModelError
from vtc.facts import DecoderFacts, EncoderFacts, ModelFacts
from vtc.models.base import VLMAdapter

STRATEGY: dict[str, Literal["default", "full"]] = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""Towers, and the vision_feature_select_strategy that leaves their patches alone: ``default`` drops the first token,
which is CLIP's CLS token and SigLIP's first patch.
"""

DECODERS = ("llama", "mistral", "qwen2")


class LlavaAdapter(VLMAdapter):
    """`LlavaForConditionalGeneration` with a tower of `STRATEGY` and a decoder of `DECODERS`."""

    family = "llava"

    @classmethod
    def read_facts(cls, path: Path) -> ModelFacts:
        """Sizes from config.json, `transformers`' defaults filled in.

        Raises
        ------
        ModelError
            If the tower, the decoder or the choice of features is one that this family's adapter does not serve.
        """
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
        except Exception as error:
            raise ModelError(f"{path / 'config.json'}: not a usable configuration ({error})") from error
        if not isinstance(config, LlavaConfig):
            raise ModelError(f"{path}: not a LLaVA checkpoint")
        vision = cast(Any, config.vision_config)
        text = cast(Any, config.text_config)
        if vision.model_type not in STRATEGY or text.model_type not in DECODERS:
            raise ModelError(
                f"{path}: LLaVA with tower '{vision.model_type}' and decoder '{text.model_type}' is not supported; "
                f"supported: {' or '.join(STRATEGY)} with {', '.join(DECODERS)}"
            )
        strategy = STRATEGY[vision.model_type]
        if not isinstance(config.vision_feature_layer, int) or config.vision_feature_select_strategy != strategy:
            raise ModelError(
                f"{path}: only one vision_feature_layer with vision_feature_select_strategy '{strategy}' is supported "
                f"for tower '{vision.model_type}'"
            )
        return cls.facts_of(config)

    @classmethod
    def facts_of(cls, config: LlavaConfig) -> ModelFacts:
        """Sizes from a configuration that this adapter serves."""
        vision = cast(Any, config.vision_config)
        text = cast(Any, config.text_config)
        side = vision.image_size // vision.patch_size
        # hidden_states has one entry more than there are layers, so -2 of 24 layers is the output of layer 22.
        feature_layer = cast(int, config.vision_feature_layer)
        feature_layer = feature_layer + vision.num_hidden_layers if feature_layer < 0 else feature_layer - 1
        return ModelFacts(
            family=cls.family,
            model_type=config.model_type,
            image_size=(vision.image_size, vision.image_size),
            grid=(side, side),
            encoder=EncoderFacts(
                layers=vision.num_hidden_layers,
                width=vision.hidden_size,
                heads=vision.num_attention_heads,
                ffn=vision.intermediate_size,
                patch_size=vision.patch_size,
                has_cls=vision.model_type == "clip_vision_model",
                feature_layer=feature_layer,
            ),
            decoder=DecoderFacts(
                layers=text.num_hidden_layers,
                width=text.hidden_size,
                heads=text.num_attention_heads,
                kv_heads=text.num_key_value_heads,
                head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
                ffn=text.intermediate_size,
                vocab=text.vocab_size,
                # Within a sliding window its mask is the causal one; longer prompts are refused.
                context=min(text.max_position_embeddings, getattr(text, "sliding_window", None) or sys.maxsize),
                gated_ffn=True,
            ),
            projector_params=(vision.hidden_size + text.hidden_size) * text.hidden_size,
        )

    @classmethod
    def load_model(cls, path: Path) -> LlavaForConditionalGeneration:
        """The model with its weights, float32, from safetensors only."""
        load: Any = LlavaForConditionalGeneration.from_pretrained
        model, report = load(
            path, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ModelError(
                f"weights lack {sorted(report['missing_keys'])[0]} and {len(report['missing_keys']) - 1} more"
            )
        return cast(LlavaForConditionalGeneration, model)

    @property
    def _llava(self) -> Any:
        return self.model.model

    @property
    def _tower(self) -> Any:
        return self._llava.vision_tower

    @property
    def encoder_layers(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self._tower.encoder.layers)

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        resized = tuple(pixel_values.shape[-2:]) != self.facts.image_size
        hidden = self._tower.embeddings(pixel_values, interpolate_pos_encoding=resized)
        return cast(Tensor, self._tower.pre_layrnorm(hidden) if self.facts.encoder.has_cls else hidden)

    def encoder_layer(self, index: int, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.encoder_layers[index](hidden, attention_mask=None))

    def encoder_queries(self, index: int, hidden: Tensor) -> Tensor:
        layer: Any = self.encoder_layers[index]
        return cast(Tensor, layer.self_attn.q_proj(layer.layer_norm1(hidden)))

    def encoder_keys(self, index: int, hidden: Tensor) -> Tensor:
        layer: Any = self.encoder_layers[index]
        return cast(Tensor, layer.self_attn.k_proj(layer.layer_norm1(hidden)))

    def patch_tokens(self, hidden: Tensor) -> Tensor:
        return hidden[:, 1:] if self.facts.encoder.has_cls else hidden

    @property
    def projector(self) -> nn.Module:
        return cast(nn.Module, self._llava.multi_modal_projector)

    @property
    def embed_tokens(self) -> nn.Module:
        return cast(nn.Module, self._llava.language_model.embed_tokens)

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self._llava.language_model.layers)

    @property
    def rotary(self) -> nn.Module:
        return cast(nn.Module, self._llava.language_model.rotary_emb)

    @property
    def final_norm(self) -> nn.Module:
        return cast(nn.Module, self._llava.language_model.norm)

    @property
    def head(self) -> nn.Module:
        return cast(nn.Module, self.model.lm_head)

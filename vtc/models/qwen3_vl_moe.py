"""Qwen3-VL whose decoder has a mixture of experts in every layer (arXiv 2511.21631); all else is as in Qwen3-VL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from transformers import Qwen3VLMoeForConditionalGeneration

from vtc.errors import ModelError
from vtc.facts.layout import ImageOptions
from vtc.facts.model import DecoderFacts, ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.parts.experts import EVERY_EXPERT
from vtc.models.qwen3_vl import Qwen3VLAdapter


class Qwen3VLMoeAdapter(Qwen3VLAdapter):
    """`Qwen3VLMoeForConditionalGeneration` with the same number of experts in all layers."""

    family = "qwen3_vl_moe"
    model_class = Qwen3VLMoeForConditionalGeneration

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        text = config.text_config
        if getattr(text, "decoder_sparse_step", 1) != 1 or getattr(text, "mlp_only_layers", None):
            raise ModelError("only mixtures of experts in all layers are supported (decoder_sparse_step 1)")
        return super().describe(config, settings, options)

    @classmethod
    def _decoder(cls, text: Any, **more: Any) -> DecoderFacts:
        return super()._decoder(
            text,
            ffn=text.moe_intermediate_size,
            experts=text.num_experts,
            active_experts=text.num_experts_per_tok,
            **more,
        )

    def set_decoder_attention(self, kind: Literal["sdpa", "grouped", "eager"]) -> None:
        super().set_decoder_attention(kind)
        # None is what transformers takes by itself.
        experts = EVERY_EXPERT if kind == "grouped" else self.model.get_correct_experts_implementation(None)
        self.model.set_experts_implementation({"text_config": experts})

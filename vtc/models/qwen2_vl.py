"""Qwen2-VL: images of any size, 2 x 2 patches a token, positions of three axes (Wang et al. 2024, arXiv 2409.12191).

Made ready for 1280 x 720 pixels unless told otherwise, as near as the processor's bounds allow. A clip is a grid of
tokens for each pair of frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2VLForConditionalGeneration

from vtc.facts.layout import ImageOptions
from vtc.facts.model import ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.parts.checks import check_parts
from vtc.models.parts.language_model import LanguageModel, decoder_facts
from vtc.models.parts.qwen_vision import QwenVision, check_decoder, qwen_encoder, qwen_layout, qwen_pixels


class Qwen2VLAdapter(QwenVision, LanguageModel):
    """`Qwen2VLForConditionalGeneration`."""

    family = "qwen2_vl"
    model_class = Qwen2VLForConditionalGeneration
    image_processor = "Qwen2VLImageProcessor"
    video_processor = "Qwen2VLVideoProcessor"

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        check_parts(config, ("qwen2_vl_vision",), ("qwen2_vl_text",))
        check_decoder(config.text_config)
        vision, text = config.vision_config, config.text_config
        pixels = qwen_pixels(vision, settings, options, "Qwen2-VL")
        width = vision.embed_dim
        encoder = qwen_encoder(vision, width=width, ffn=int(width * vision.mlp_ratio))
        facts = ModelFacts(
            family=cls.family,
            model_type=config.model_type,
            layout=qwen_layout(pixels, encoder.merge),
            encoder=encoder,
            decoder=decoder_facts(text, position_axes=3),
            projector_params=encoder.token_width * (encoder.token_width + text.hidden_size),
        )
        return facts, pixels

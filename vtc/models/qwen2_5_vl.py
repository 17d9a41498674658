"""Qwen2.5-VL: as Qwen2-VL, with windows in most of the tower's layers and positions in seconds (arXiv 2502.13923).

Made ready for 1280 x 720 pixels unless told otherwise, as near as the processor's bounds allow. A clip is a grid of
tokens for each pair of frames, which are taken to come at the frame rate of the checkpoint's video settings; 2 a second
where those name none, as in Qwen's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2_5_VLForConditionalGeneration

from vtc.facts.layout import ImageOptions
from vtc.facts.model import ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.parts.checks import check_parts
from vtc.models.parts.language_model import LanguageModel, decoder_facts
from vtc.models.parts.qwen_vision import QwenVision, check_decoder, qwen_encoder, qwen_layout, qwen_pixels

FRAMES_PER_SECOND = 2.0


class Qwen2_5VLAdapter(QwenVision, LanguageModel):
    """`Qwen2_5_VLForConditionalGeneration`."""

    family = "qwen2_5_vl"
    model_class = Qwen2_5_VLForConditionalGeneration
    image_processor = "Qwen2VLImageProcessor"
    video_processor = "Qwen2VLVideoProcessor"

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        check_parts(config, ("qwen2_5_vl_vision",), ("qwen2_5_vl_text",))
        check_decoder(config.text_config)
        vision, text = config.vision_config, config.text_config
        pixels = qwen_pixels(vision, settings, options, "Qwen2.5-VL")
        merge = vision.spatial_merge_size
        encoder = qwen_encoder(
            vision,
            width=vision.hidden_size,
            ffn=vision.intermediate_size,
            gated_ffn=True,
            window=vision.window_size // merge // vision.patch_size * merge,  # whole tokens
            whole_layers=tuple(vision.fullatt_block_indexes),
        )
        seconds = vision.temporal_patch_size / (settings.get("fps") or FRAMES_PER_SECOND)
        facts = ModelFacts(
            family=cls.family,
            model_type=config.model_type,
            layout=qwen_layout(pixels, merge, vision.tokens_per_second * seconds),
            encoder=encoder,
            decoder=decoder_facts(text, position_axes=3),
            projector_params=encoder.token_width * (encoder.token_width + text.hidden_size),
        )
        return facts, pixels

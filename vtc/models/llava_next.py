"""LLaVA-NeXT (LLaVA 1.6): LLaVA that also sees an image in tiles (Liu et al. 2024, arXiv 2310.03744 and its successor).

An image is one view of itself squashed, then tiles of it in its own aspect ratio. What is padding is cut off their
common grid of tokens, and each row ends in a newline token. Without ``--image-size`` or ``--tiles``, images of 2 x 2
tiles are served. Several images in a prompt are each treated so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import Tensor
from transformers import LlavaNextForConditionalGeneration, PreTrainedModel

from vtc.facts.layout import ImageOptions
from vtc.facts.model import ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.images.pixel_specs import pixel_spec
from vtc.models.llava import LlavaAdapter
from vtc.models.parts.any_resolution import tiled_layout, tiles_to_cut, with_pinpoints
from vtc.models.parts.checks import refuse


class LlavaNextAdapter(LlavaAdapter):
    """`LlavaNextForConditionalGeneration` with the towers and decoders of LLaVA."""

    family = "llava_next"
    model_class: ClassVar[type[PreTrainedModel]] = LlavaNextForConditionalGeneration
    image_processor = "LlavaNextImageProcessor"

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        cls.check(config)
        refuse(options, "LLaVA-NeXT", "frames")
        pixels = pixel_spec(with_pinpoints(config, settings), options.image_size, tiles_to_cut(options, config))
        return cls.sizes(config, tiled_layout(config, pixels)), pixels

    @property
    def separator(self) -> Tensor:
        return cast(Tensor, self.model.model.image_newline)

    def placeholder_settings(self, keep: int) -> dict[str, Any]:
        # Its processor counts the tokens of each image by its size, so this holds for images of the size served.
        return {
            "num_additional_image_tokens": keep - self.facts.layout.tokens,
            "vision_feature_select_strategy": "full",
        }

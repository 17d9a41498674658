"""LLaVA: a vision tower, a two-layer projector, a decoder of the Llama kind (Liu et al. 2023, arXiv 2310.03744).

LLaVA-1.5 has a CLIP tower and a Llama decoder. Later checkpoints of the same class have a SigLIP tower, which
has no CLS token, or a Qwen2, Mistral or Mixtral decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedModel

from vtc.facts.layout import ImageLayout, ImageOptions, single_view
from vtc.facts.model import ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.images.pixel_specs import pixel_spec
from vtc.models.parts.checks import check_features, check_parts, check_view, refuse
from vtc.models.parts.clip_tower import ClipTower, clip_facts, feature_layer
from vtc.models.parts.language_model import LanguageModel, decoder_facts

STRATEGY: dict[str, Literal["default", "full"]] = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""Towers, and the vision_feature_select_strategy that leaves their patches alone: ``default`` drops the first token,
which is CLIP's CLS token and SigLIP's first patch.
"""

DECODERS = ("llama", "mistral", "mixtral", "qwen2")


class LlavaAdapter(ClipTower, LanguageModel):
    """`LlavaForConditionalGeneration` with a tower of `STRATEGY` and a decoder of `DECODERS`."""

    family = "llava"
    model_class: ClassVar[type[PreTrainedModel]] = LlavaForConditionalGeneration
    image_processor = "LlavaImageProcessor"

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        cls.check(config)
        refuse(options, "LLaVA", "tiles", "frames")
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        layout = single_view((vision.image_size, vision.image_size), (side, side))
        pixels = pixel_spec(settings)
        check_view(pixels, layout.image_size)
        return cls.sizes(config, layout), pixels

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse a configuration with parts or features that are not served.

        Raises
        ------
        ModelError
        """
        check_parts(config, STRATEGY, DECODERS)
        check_features(config, STRATEGY)

    @classmethod
    def sizes(cls, config: Any, layout: ImageLayout) -> ModelFacts:
        """The facts of a configuration, for images of one layout."""
        vision, text = config.vision_config, config.text_config
        return ModelFacts(
            family=cls.family,
            model_type=config.model_type,
            layout=layout,
            encoder=clip_facts(vision, feature_layer(config.vision_feature_layer, vision.num_hidden_layers)),
            decoder=decoder_facts(text),
            projector_params=(vision.hidden_size + text.hidden_size) * text.hidden_size,
        )

    def placeholder_settings(self, keep: int) -> dict[str, Any]:
        settings = placeholder_config(self.facts.image_size, keep, self.facts.encoder.patch_size)
        return {"image_token": self.image_token, **settings}

    @property
    def projector(self) -> nn.Module:
        return cast(nn.Module, self.model.model.multi_modal_projector)


def placeholder_config(image_size: tuple[int, int], keep: int, patch_size: int) -> dict[str, Any]:
    """Fields of ``processor_config.json`` that make a LLaVA processor emit `keep` placeholders an image.

    `transformers` counts ``(H // patch_size) * (W // patch_size) + num_additional_image_tokens``, less one
    for the CLS token where the strategy is ``default``; transformers.js counts without that last step. With
    the strategy ``full`` and the pruned tokens as a negative number of additional ones, both come to `keep`.

    Parameters
    ----------
    image_size : (int, int)
        Rows and columns of pixels.
    keep : int
    patch_size : int
    """
    patches = (image_size[0] // patch_size) * (image_size[1] // patch_size)
    return {
        "patch_size": patch_size,
        "num_additional_image_tokens": keep - patches,
        "vision_feature_select_strategy": "full",
    }

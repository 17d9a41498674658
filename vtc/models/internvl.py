"""InternVL: a vision transformer with a CLS token, squares of patches made one token, a Qwen2 or Qwen3 decoder,
which may be a mixture of experts.

An image is cut into tiles, a thumbnail of the whole after them (InternVL 1.5, Chen et al. 2024, arXiv 2404.16821;
InternVL3, Zhu et al. 2025, arXiv 2504.10479): one run of placeholders, in which each view is a grid of its own. The
frames of a clip are not cut; each is a run of its own, with its number before it. Asked for nothing, the adapter is
made ready for images of 1280 x 720 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration

from vtc.errors import InputError, ModelError
from vtc.facts.layout import Block, ImageLayout, ImageOptions
from vtc.facts.model import EncoderFacts, ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.images.pixel_specs import USUAL_IMAGE, WHOLE, pixel_spec
from vtc.models.parts.checks import check_features, check_parts, token_grid
from vtc.models.parts.clip_tower import feature_layer
from vtc.models.parts.language_model import LanguageModel, decoder_facts

TOWERS = {"internvl_vision": "default"}
"""Towers, and the vision_feature_select_strategy that leaves out their CLS token."""

DECODERS = ("qwen2", "qwen3", "qwen3_moe")


class InternVLAdapter(LanguageModel):
    """`InternVLForConditionalGeneration` with a tower of `TOWERS` and a decoder of `DECODERS`."""

    family = "internvl"
    model_class = InternVLForConditionalGeneration
    image_processor = "GotOcr2ImageProcessor"
    video_processor = "InternVLVideoProcessor"

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        check_parts(config, TOWERS, DECODERS)
        check_features(config, TOWERS)
        vision, text = config.vision_config, config.text_config
        patch, merge = vision.patch_size[0], round(1 / config.downsample_ratio)
        if vision.patch_size[1] != patch or merge * config.downsample_ratio != 1:
            raise ModelError(
                f"patches of {tuple(vision.patch_size)} pixels and a downsample_ratio of {config.downsample_ratio} are "
                "not supported; supported: square patches, and 1 divided by a whole number"
            )
        pixels = _pixels(settings, options)
        grid = token_grid(pixels.view, patch, merge)
        width = vision.hidden_size * merge**2
        facts = ModelFacts(
            family=cls.family,
            model_type=config.model_type,
            layout=ImageLayout(
                image_size=pixels.aspect or options.image_size or pixels.view,
                view_grid=grid,
                blocks=(Block(grid),) * pixels.views,
                spans=options.frames,
                frames=options.frames,
                tiles=pixels.pictures[0].tiles if pixels.views > 1 else None,
            ),
            encoder=EncoderFacts(
                layers=vision.num_hidden_layers,
                width=vision.hidden_size,
                heads=vision.num_attention_heads,
                ffn=vision.intermediate_size,
                patch_size=patch,
                has_cls=True,
                feature_layer=feature_layer(config.vision_feature_layer, vision.num_hidden_layers),
                merge=merge,
            ),
            decoder=decoder_facts(text),
            projector_params=(width + text.hidden_size) * text.hidden_size,
        )
        return facts, pixels

    # Vision ---------------------------------------------------------------------------------------------------------

    @property
    def _tower(self) -> Any:
        return self.model.model.vision_tower

    @property
    def encoder_layers(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self._tower.encoder.layer)

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        return cast(Tensor, self._tower.embeddings(pixel_values.flatten(0, -4)))

    def encoder_layer(self, index: int, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.encoder_layers[index](hidden))

    def encoder_queries(self, index: int, hidden: Tensor) -> Tensor:
        layer: Any = self.encoder_layers[index]
        return cast(Tensor, layer.attention.q_norm(layer.attention.q_proj(layer.layernorm_before(hidden))))

    def encoder_keys(self, index: int, hidden: Tensor) -> Tensor:
        layer: Any = self.encoder_layers[index]
        return cast(Tensor, layer.attention.k_norm(layer.attention.k_proj(layer.layernorm_before(hidden))))

    def view_features(self, hidden: Tensor) -> Tensor:
        # The model's last output is normed where the tower does that; those of earlier layers never are.
        last = self.model.config.vision_feature_layer == -1
        return self.view_tokens(self._tower.layernorm(hidden) if last else hidden)

    @property
    def projector(self) -> nn.Module:
        return cast(nn.Module, self.model.model.multi_modal_projector)

    # Prompts --------------------------------------------------------------------------------------------------------

    @property
    def placeholder(self) -> str:
        return self.special_token("video_token") if self.facts.layout.frames > 1 else self.image_token

    @property
    def prompt_parts(self) -> Sequence[str]:
        begin, end = self.special_token("start_image_token"), self.special_token("end_image_token")
        frames = self.facts.layout.frames
        if frames == 1:
            return [begin, end]
        between = [f"{end}\nFrame{number}: {begin}" for number in range(2, frames + 1)]
        return [f"Frame1: {begin}", *between, end]

    def placeholder_settings(self, keep: int) -> dict[str, Any]:
        views = self.facts.layout.span_views  # the processor counts by view
        return {"image_seq_length": keep // views} if keep % views == 0 else {}


def _pixels(settings: Mapping[str, Any], options: ImageOptions) -> PixelSpec:
    if options.frames > 1:
        if options.tiles not in (None, WHOLE):
            raise InputError("InternVL does not cut the frames of a clip into tiles; leave out --tiles or --frames")
        return pixel_spec(settings, tiles=WHOLE, frames=options.frames)
    size = options.image_size or (USUAL_IMAGE if options.tiles is None else None)
    # Its image processor cuts no tiles by itself: the processor around it asks for them at each call.
    return pixel_spec({**settings, "crop_to_patches": True}, size, options.tiles)

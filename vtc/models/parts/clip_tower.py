"""Vision towers of the CLIP kind: CLIP itself, SigLIP, and what follows their layout in `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from vtc.errors import ModelError
from vtc.facts.model import EncoderFacts
from vtc.models.base import VLMAdapter


class ClipTower(VLMAdapter):
    """An adapter whose tower has ``embeddings`` and ``encoder.layers`` with separate queries and keys."""

    @property
    def _tower(self) -> Any:
        return self.model.model.vision_tower

    @property
    def encoder_layers(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self._tower.encoder.layers)

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        views = pixel_values.flatten(0, -4)
        resized = tuple(views.shape[-2:]) != (self._tower.config.image_size,) * 2
        hidden = self._tower.embeddings(views, interpolate_pos_encoding=resized)
        return cast(Tensor, self._tower.pre_layrnorm(hidden) if self.facts.encoder.has_cls else hidden)

    def encoder_layer(self, index: int, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.encoder_layers[index](hidden, attention_mask=None))

    def encoder_queries(self, index: int, hidden: Tensor) -> Tensor:
        layer: Any = self.encoder_layers[index]
        return cast(Tensor, layer.self_attn.q_proj(layer.layer_norm1(hidden)))

    def encoder_keys(self, index: int, hidden: Tensor) -> Tensor:
        layer: Any = self.encoder_layers[index]
        return cast(Tensor, layer.self_attn.k_proj(layer.layer_norm1(hidden)))


def clip_facts(vision: Any, layer: int, **more: Any) -> EncoderFacts:
    """Sizes of such a tower, whose features are the output of `layer` (see :func:`feature_layer`)."""
    return EncoderFacts(
        layers=vision.num_hidden_layers,
        width=vision.hidden_size,
        heads=vision.num_attention_heads,
        ffn=vision.intermediate_size,
        patch_size=vision.patch_size,
        has_cls=vision.model_type == "clip_vision_model",
        feature_layer=layer,
        **more,
    )


def feature_layer(configured: int, layers: int) -> int:
    """The 0-based layer whose output a configuration's ``vision_feature_layer`` means.

    It counts hidden states, one more than there are layers: -2 of 24 layers is the output of layer 22.

    Raises
    ------
    ModelError
        If it means none.
    """
    index = configured + layers if configured < 0 else configured - 1
    if not 0 <= index < layers:
        raise ModelError(
            f"vision_feature_layer {configured} of config.json is the output of none of the tower's {layers} layers; "
            "take the config.json that belongs to the weights"
        )
    return index

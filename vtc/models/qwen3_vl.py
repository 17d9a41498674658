"""Qwen3-VL: patches in squares, DeepStack features of earlier encoder layers in the decoder (arXiv 2511.21631).

DeepStack (Meng et al. 2024, arXiv 2406.04334): after each of the first decoder layers the features of an encoder layer
are added to the visual tokens. An image of any size is taken whole; without a size it is one of 1280 x 720 pixels,
within the processor's bounds. A clip's frames are taken as evenly spaced at the frame rate that the video processor
samples at; the text says the second of each pair of them, and each pair is a run of placeholders of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3VLForConditionalGeneration

from vtc.errors import ModelError
from vtc.facts.layout import Grid, ImageOptions
from vtc.facts.model import DecoderFacts, ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.parts.checks import check_parts
from vtc.models.parts.language_model import LanguageModel, decoder_facts
from vtc.models.parts.qwen_vision import PatchMerger, QwenVision, check_decoder, qwen_encoder, qwen_layout, qwen_pixels

SAMPLED = 2.0
"""Frames a second that the video processor samples where its settings say nothing."""


class Qwen3VLAdapter(QwenVision, LanguageModel):
    """`Qwen3VLForConditionalGeneration`."""

    family = "qwen3_vl"
    model_class: ClassVar[type[PreTrainedModel]] = Qwen3VLForConditionalGeneration
    image_processor = "Qwen2VLImageProcessor"
    video_processor = "Qwen3VLVideoProcessor"

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        check_parts(config, (f"{cls.family}_vision",), (f"{cls.family}_text",))
        vision, text = config.vision_config, config.text_config
        check_decoder(text)
        _check_carried(vision, text)
        pixels = qwen_pixels(vision, settings, options, "Qwen3-VL")
        merge, deepstack = vision.spatial_merge_size, len(vision.deepstack_visual_indexes)
        inner = vision.hidden_size * merge**2
        merger = inner * (inner + vision.out_hidden_size)
        layout = qwen_layout(pixels, merge)
        facts = ModelFacts(
            family=cls.family,
            model_type=config.model_type,
            # Text stands between the steps in time, so that each is a span.
            layout=replace(layout, blocks=layout.blocks[:1], spans=len(layout.blocks)),
            encoder=qwen_encoder(vision, width=vision.hidden_size, ffn=vision.intermediate_size),
            decoder=cls._decoder(text, deepstack=deepstack),
            projector_params=(1 + deepstack) * merger,
            deepstack_params=deepstack * merger,
        )
        return facts, pixels

    @classmethod
    def _decoder(cls, text: Any, **more: Any) -> DecoderFacts:
        return decoder_facts(text, position_axes=3, **more)

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        hidden = super().embed_patches(pixel_values)
        table = self._visual.pos_embed
        taps = [self._taps(place) for place in self._coordinates]
        numbers = torch.tensor([[number for number, _ in four] for four in taps], device=hidden.device)
        weights = torch.tensor([[weight for _, weight in four] for four in taps], device=hidden.device)
        positions: Tensor = (table(numbers) * weights.unsqueeze(-1)).sum(dim=1)
        return hidden + positions.to(hidden.dtype)

    def _taps(self, place: Grid) -> list[tuple[int, float]]:
        """The four learned positions around a patch and their weights: the square of them spans the view."""
        side, merge = self._visual.num_grid_per_side, self.facts.encoder.merge
        axes = []
        for at, size in zip(place, self.facts.layout.view_grid, strict=True):
            exact = at * (side - 1) / max(size * merge - 1, 1)
            low = math.floor(exact)
            axes.append([(low, low + 1 - exact), (min(low + 1, side - 1), exact - low)])
        return [(row * side + column, down * across) for row, down in axes[0] for column, across in axes[1]]

    @property
    def deepstack_layers(self) -> Sequence[int]:
        return tuple(self._visual.deepstack_visual_indexes)

    def project_deepstack(self, deepstack: Tensor) -> Tensor:
        mergers = [PatchMerger(merger, self.facts.encoder.width) for merger in self._visual.deepstack_merger_list]
        parts = deepstack.chunk(len(mergers), dim=-1)
        return torch.cat([merger(part) for merger, part in zip(mergers, parts, strict=True)], dim=-1)

    @property
    def embed_tokens(self) -> nn.Module:
        decoder = self.facts.decoder
        return WideEmbedding(super().embed_tokens, decoder.hidden_width(0) - decoder.width)

    def rotation(self, hidden: Tensor, position_ids: Tensor, windowed: bool = False) -> tuple[Tensor, Tensor]:
        # The model's own code interleaves the axes by writing in place, which a graph would do by scattering.
        rotary = self._language_model.rotary_emb
        axes = [0] * len(rotary.inv_freq)
        for axis in (1, 2):
            part = slice(axis, 3 * rotary.mrope_section[axis], 3)
            axes[part] = [axis] * len(axes[part])
        angles = position_ids[torch.tensor(axes, device=position_ids.device)].permute(1, 2, 0) * rotary.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        scale = rotary.attention_scaling
        return (angles.cos() * scale).to(hidden.dtype), (angles.sin() * scale).to(hidden.dtype)

    @property
    def prompt_parts(self) -> Sequence[str]:
        layout = self.facts.layout
        if layout.frames == 1:
            return super().prompt_parts
        begin, end = (
            self.token_text(token)
            for token in (self.model.config.vision_start_token_id, self.model.config.vision_end_token_id)
        )
        rate, pair = self.settings(self.path, self.wanted).get("fps") or SAMPLED, self.facts.encoder.frames
        last = layout.frames - 1
        # Of the frames in a patch the processor names the time halfway from the first to the last.
        halfway = [(first + min(first + pair - 1, last)) / 2 / rate for first in range(0, layout.frames, pair)]
        opened = [f"<{seconds:.1f} seconds>{begin}" for seconds in halfway]
        return [opened[0], *(end + text for text in opened[1:]), end]


class WideEmbedding(nn.Module):
    """Token embeddings with zeros after them: room for the DeepStack features of visual tokens.

    Parameters
    ----------
    embedding : module
        Token ids (B, S) to (B, S, E).
    room : int
        Zeros after them.
    """

    def __init__(self, embedding: nn.Module, room: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.room = room

    def forward(self, token_ids: Tensor) -> Tensor:
        """Embeddings (B, S, E + room) of token ids (B, S)."""
        return nn.functional.pad(cast(Tensor, self.embedding(token_ids)), (0, self.room))


def _check_carried(vision: Any, text: Any) -> None:
    """Refuse features of layers that are not there, or in another order.

    Raises
    ------
    ModelError
    """
    layers = list(vision.deepstack_visual_indexes)
    if layers != sorted(set(layers)) or not all(0 <= layer < vision.depth for layer in layers):
        raise ModelError(f"deepstack_visual_indexes {layers} is not supported; supported: ascending encoder layers")
    if len(layers) > text.num_hidden_layers:
        raise ModelError(f"deepstack_visual_indexes {layers} are more than the {text.num_hidden_layers} decoder layers")

"""Gemma 3: SigLIP, patches averaged to 256 tokens, a norm and a matrix, a Gemma decoder (arXiv 2503.19786).

An image of any size is squashed into one view. With ``--tiles``, crops along the longer edge follow (pan and scan),
each a run of tokens of its own between the processor's words; what a checkpoint says of them does not count, as the
processor's class turns them off at each call. The tokens of a view attend to each other in both directions, in layers
with a sliding window within that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Gemma3ForConditionalGeneration

from vtc.errors import ModelError
from vtc.facts.layout import Block, ImageLayout, ImageOptions
from vtc.facts.model import ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.images.pixel_specs import pixel_spec
from vtc.models.parts.checks import check_parts, check_view, refuse
from vtc.models.parts.clip_tower import clip_facts
from vtc.models.parts.gemma import TOWERS, GemmaVLM
from vtc.models.parts.language_model import decoder_facts

DECODERS = ("gemma3_text",)
UNUSUAL = ("use_bidirectional_attention", "attn_logit_softcapping", "final_logit_softcapping")
"""Options of the decoder that no published checkpoint of this class sets."""


class Gemma3Adapter(GemmaVLM):
    """`Gemma3ForConditionalGeneration`."""

    family = "gemma3"
    model_class = Gemma3ForConditionalGeneration
    image_processor = "Gemma3ImageProcessor"

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        check_parts(config, TOWERS, DECODERS)
        refuse(options, "Gemma 3", "frames")
        vision, text = config.vision_config, config.text_config
        for option in UNUSUAL:
            if getattr(text, option, None):
                raise ModelError(f"decoder option {option} is not supported; supported: none of {', '.join(UNUSUAL)}")
        patches, side = vision.image_size // vision.patch_size, round(config.mm_tokens_per_image**0.5)
        if side**2 != config.mm_tokens_per_image or patches % side:
            raise ModelError(
                f"mm_tokens_per_image {config.mm_tokens_per_image} is not supported; supported: squares of a number "
                f"that divides the {patches} patches of a row"
            )
        pixels, layout = _images(settings, options, (vision.image_size, vision.image_size), (side, side))
        check_view(pixels, (vision.image_size, vision.image_size))
        sliding = [number for number, kind in enumerate(text.layer_types) if kind == "sliding_attention"]
        facts = ModelFacts(
            family=cls.family,
            model_type=config.model_type,
            layout=layout,
            encoder=clip_facts(vision, vision.num_hidden_layers - 1, merge=patches // side, pooled=True),
            # These layers have rotary positions of their own, however long the window is.
            decoder=decoder_facts(
                text, bidirectional="image", window=text.sliding_window, window_layers=tuple(sliding)
            ),
            projector_params=vision.hidden_size * text.hidden_size,
        )
        return facts, pixels

    def placeholder_settings(self, keep: int) -> dict[str, Any]:
        return {"image_seq_length": keep}

    @property
    def projector(self) -> nn.Module:
        return Projector(self.model.model.multi_modal_projector)

    def rotation(self, hidden: Tensor, position_ids: Tensor, windowed: bool = False) -> tuple[Tensor, Tensor]:
        kind = "sliding_attention" if windowed else "full_attention"
        return cast(tuple[Tensor, Tensor], self._language_model.rotary_emb(hidden, position_ids, kind))

    @property
    def placeholder(self) -> str:
        return self.token_text(self.model.config.boi_token_id)

    @property
    def prompt_parts(self) -> Sequence[str]:
        begin = f"\n\n{self.placeholder}"
        end = f"{self.token_text(self.model.config.eoi_token_id)}\n\n"
        crops = self.facts.layout.spans - 1
        if not crops:
            return [begin, end]
        first = f"{end} and here are some crops to help you see better {begin}"
        return [f"Here is the original image {begin}", first, *[f"{end} {begin}"] * (crops - 1), end]


class Projector(nn.Module):
    """The projector after its pooling, which is a matter of the grid.

    Parameters
    ----------
    own : module
        The checkpoint's.
    """

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.norm = own.mm_soft_emb_norm
        self.weight = own.mm_input_projection_weight

    def forward(self, features: Tensor) -> Tensor:
        """Tokens (B, K, F) in the decoder's space, (B, K, E)."""
        return torch.matmul(self.norm(features), self.weight)


def _images(
    settings: Mapping[str, Any], options: ImageOptions, view: tuple[int, int], grid: tuple[int, int]
) -> tuple[PixelSpec, ImageLayout]:
    """Pixels and layout: the whole image in one view of `view` pixels and `grid` tokens, then its crops."""
    size = options.image_size or (view if options.tiles is None else None)
    pixels = pixel_spec({**settings, "do_pan_and_scan": False}, size, options.tiles)
    spans = len(pixels.pictures)
    return pixels, ImageLayout(pixels.aspect or view, grid, (Block(grid),), spans=spans)

"""PaliGemma: SigLIP, a linear projector, Gemma (Beyer et al. 2024, arXiv 2407.07726) or Gemma 2 (arXiv 2412.03555).

Images of any size are squashed into the tower's one view. All of a prompt, text and image, attends in both directions;
answers look back, in every other layer of Gemma 2 no further than its window. The processor writes the start token
after a prompt's images and a line break at its end, so prompts hold neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PaliGemmaForConditionalGeneration

from vtc.errors import ModelError
from vtc.facts.layout import ImageOptions, single_view
from vtc.facts.model import ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.images.pixel_specs import pixel_spec
from vtc.models.parts.checks import check_parts, check_view, refuse
from vtc.models.parts.clip_tower import clip_facts
from vtc.models.parts.gemma import TOWERS, GemmaVLM
from vtc.models.parts.language_model import decoder_facts

DECODERS = ("gemma2", "gemma")


class PaliGemmaAdapter(GemmaVLM):
    """`PaliGemmaForConditionalGeneration` with a decoder of `DECODERS`."""

    family = "paligemma"
    model_class = PaliGemmaForConditionalGeneration
    image_processor = "SiglipImageProcessor"
    fixed_chat_template: ClassVar[str] = (
        "{% for message in messages %}{% for part in message['content'] if part['type'] == 'image' %}<image>"
        "{% endfor %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
        "{% endfor %}{% endfor %}"
    )

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.set_decoder_attention("sdpa")

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        check_parts(config, TOWERS, DECODERS)
        refuse(options, "PaliGemma", "tiles", "frames")
        vision, text = config.vision_config, config.text_config
        if config.projection_dim != text.hidden_size:
            raise ModelError(
                f"projection_dim {config.projection_dim} is not supported; supported: the decoder's {text.hidden_size}"
            )
        pixels, size = pixel_spec(settings), (vision.image_size, vision.image_size)
        check_view(pixels, size)
        side = vision.image_size // vision.patch_size
        facts = ModelFacts(
            family=cls.family,
            model_type=config.model_type,
            layout=single_view(size, (side, side)),
            encoder=clip_facts(vision, vision.num_hidden_layers - 1),
            decoder=decoder_facts(text, bidirectional="prompt"),
            projector_params=vision.hidden_size * text.hidden_size,
        )
        return facts, pixels

    @property
    def projector(self) -> nn.Module:
        return cast(nn.Module, self.model.model.multi_modal_projector)

    @property
    def head(self) -> nn.Module:
        cap = getattr(self.model.config.text_config, "final_logit_softcapping", None)
        return super().head if cap is None else SoftCapped(super().head, cap)

    def set_decoder_attention(self, kind: Literal["sdpa", "grouped", "eager"]) -> None:
        # The fused kernel leaves the cap of Gemma 2's scores out.
        super().set_decoder_attention("grouped" if kind == "sdpa" else kind)

    @property
    def prompt_frame(self) -> tuple[str, str]:
        return self.special_token("bos_token"), "\n"


class SoftCapped(nn.Module):
    """A head whose logits go smoothly to a limit.

    Parameters
    ----------
    head : module
    cap : float
        The limit; no logit is beyond it.
    """

    def __init__(self, head: nn.Module, cap: float) -> None:
        super().__init__()
        self.head = head
        self.cap = cap

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (B, S, vocabulary) of hidden states (B, S, E)."""
        return torch.tanh(self.head(hidden) / self.cap) * self.cap

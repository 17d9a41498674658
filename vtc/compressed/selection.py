"""What selection costs, on its own: the encoder stages and the readings that they take, without the encoder."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from vtc.compressed.model import CompressedModel
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.visual_tokens import TextEmbeddings

TEXT_TOKENS = 16


def selection_of(model: CompressedModel) -> Selection | None:
    """A model's selection before the decoder; None where its recipe has none."""
    vision = model.vision
    return Selection(vision) if isinstance(vision, VisionEncoder) and len(vision.stages) else None


class Selection(nn.Module):
    """The encoder stages alone.

    In the vision graph a runtime may share the keys of a reading with the layer's own attention. Here they are
    computed, so the cost is an upper bound.

    Parameters
    ----------
    vision : VisionEncoder
    """

    def __init__(self, vision: VisionEncoder) -> None:
        super().__init__()
        self.vision = vision
        self.layers = vision.read_layers

    @property
    def inputs(self) -> list[str]:
        """Names of what `forward` takes, in order."""
        text = ["text_embeds", "text_mask"] if self.vision.needs.text else []
        return ["hidden", *(f"layer_input_{layer}" for layer in self.layers), *text]

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        """Select.

        Parameters
        ----------
        values : Tensors
            The encoder's output (B, [1 +] N, D); inputs of the layers that are read, of the same shape; and, where a
            selector looks at the questions, their embeddings (B, T, E) and mask (B, T).

        Returns
        -------
        features : Tensor of shape (B, K, D)
        keep_indices : Tensor of shape (B, K), int64
        """
        hidden, *others = values
        inputs = dict(zip(self.layers, others, strict=False))
        text = TextEmbeddings(*others[-2:]) if self.vision.needs.text else None
        tokens = self.vision.with_readings(hidden, inputs)
        tokens = self.vision.through_stages(replace(tokens, text=text))
        return tokens.features, tokens.indices

    def example(self, images: int) -> tuple[Tensor, ...]:
        """Random inputs for a number of images, as the model's weights are; questions of `TEXT_TOKENS` tokens."""
        facts = self.vision.adapter.facts
        weights = next(self.vision.adapter.embed_tokens.parameters())

        def values(tokens: int, width: int) -> Tensor:
            return torch.randn(images * facts.layout.views, tokens, width, device=weights.device, dtype=weights.dtype)

        patches = math.prod(facts.layout.view_grid) * facts.encoder.merge**2
        hidden = [values(patches + facts.encoder.has_cls, facts.encoder.width) for _ in range(1 + len(self.layers))]
        if not self.vision.needs.text:
            return tuple(hidden)
        mask = torch.ones(images * facts.layout.spans, TEXT_TOKENS, dtype=torch.long, device=weights.device)
        text = torch.randn(*mask.shape, facts.decoder.width, device=weights.device, dtype=weights.dtype)
        return (*hidden, text, mask)

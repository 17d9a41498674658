"""What selection costs, on its own: the encoder stages and the readings that they take, without the encoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vtc.compressed import CompressedModel
from vtc.vision_encoder import VisionEncoder
from vtc.visual_tokens import TextEmbeddings


def selection_of(model: CompressedModel) -> Selection | None:
    """A model's selection in front of the decoder; None where its recipe has none."""
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

    def forward(
        self, hidden: Tensor, layer_inputs: list[Tensor], text: TextEmbeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        """Select.

        Parameters
        ----------
        hidden : Tensor of shape (B, [1 +] N, D)
            The encoder's output.
        layer_inputs : list of Tensor of the same shape
            Inputs of the layers that are read, in ascending order.
        text : TextEmbeddings or None
            The questions, where a selector looks at them.

        Returns
        -------
        features : Tensor of shape (B, K, D)
        keep_indices : Tensor of shape (B, K), int64
        """
        inputs = dict(zip(self.layers, layer_inputs, strict=True))
        tokens = self.vision.noted(hidden, inputs, self.vision.adapter.facts.grid)
        tokens = self.vision.through_stages(replace(tokens, text=text))
        return tokens.features, tokens.indices

    def example(self, images: int) -> tuple[Tensor, list[Tensor]]:
        """Random inputs for a number of images, as the model's weights are."""
        facts = self.vision.adapter.facts
        weights = next(self.vision.adapter.embed_tokens.parameters())
        shape = (images, facts.visual_tokens + facts.encoder.has_cls, facts.encoder.width)

        def values() -> Tensor:
            return torch.randn(shape, device=weights.device, dtype=weights.dtype)

        return values(), [values() for _ in self.layers]

"""What selection costs, on its own: the encoder stages and the CLS attention rows they read, without the encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.compressed import CompressedModel
from vtc.vision_encoder import VisionEncoder
from vtc.visual_tokens import on_grid


def selection_of(model: CompressedModel) -> Selection | None:
    """A model's selection in front of the decoder; None where its recipe has none."""
    vision = model.vision
    return Selection(vision) if isinstance(vision, VisionEncoder) and len(vision.stages) else None


class Selection(nn.Module):
    """The encoder stages alone.

    In the vision graph a runtime may share the keys of a CLS row with the layer's own attention. Here they are
    computed, so the cost is an upper bound.

    Parameters
    ----------
    vision : VisionEncoder
    """

    def __init__(self, vision: VisionEncoder) -> None:
        super().__init__()
        self.vision = vision
        self.cls_layers = sorted(vision.cls_layers)

    def forward(self, hidden: Tensor, layer_inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Select.

        Parameters
        ----------
        hidden : Tensor of shape (B, [1 +] N, D)
            The encoder's output.
        layer_inputs : list of Tensor of the same shape
            Inputs of the layers whose CLS attention is read, in ascending order.

        Returns
        -------
        features : Tensor of shape (B, K, D)
        keep_indices : Tensor of shape (B, K), int64
        """
        adapter = self.vision.adapter
        rows = {
            layer: adapter.cls_attention(layer, given)
            for layer, given in zip(self.cls_layers, layer_inputs, strict=True)
        }
        tokens = on_grid(adapter.patch_tokens(hidden), adapter.facts.grid, rows)
        for stage in self.vision.stages:
            tokens = stage(tokens)
        return tokens.features, tokens.indices

    def example(self, images: int) -> tuple[Tensor, list[Tensor]]:
        """Random inputs for a number of images, as the model's weights are."""
        facts = self.vision.adapter.facts
        weights = next(self.vision.adapter.embed_tokens.parameters())
        shape = (images, facts.visual_tokens + facts.encoder.has_cls, facts.encoder.width)

        def values() -> Tensor:
            return torch.randn(shape, device=weights.device, dtype=weights.dtype)

        return values(), [values() for _ in self.cls_layers]

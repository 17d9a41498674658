"""Pixels to projected visual tokens, with the recipe's encoder stages in between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vtc.models.base import VLMAdapter
from vtc.visual_tokens import VisualTokens, on_grid


class VisionEncoder(nn.Module):
    """Vision encoder, stages and projector; the module that is exported as `vision_encoder.onnx`.

    Parameters
    ----------
    adapter : VLMAdapter
    layers : sequence of int
        Encoder layers to run, ascending; those behind the feature layer are never needed.
    stages : sequence of modules
        Each maps :class:`VisualTokens` to :class:`VisualTokens`.
    cls_layers : frozenset of int
        Layers whose CLS attention the stages' selectors read.
    """

    def __init__(
        self,
        adapter: VLMAdapter,
        layers: Sequence[int],
        stages: Sequence[nn.Module] = (),
        cls_layers: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.layers = tuple(layers)
        self.stages = nn.ModuleList(stages)
        self.cls_layers = cls_layers

    def tokens(self, pixel_values: Tensor) -> VisualTokens:
        """All visual tokens of images (B, 3, H, W) in the encoder's space, before any stage."""
        hidden = self.adapter.embed_patches(pixel_values)
        cls_attention: dict[int, Tensor] = {}
        for layer in self.layers:
            if layer in self.cls_layers:
                cls_attention[layer] = self.adapter.cls_attention(layer, hidden)
            hidden = self.adapter.encoder_layer(layer, hidden)
        patch = self.adapter.facts.encoder.patch_size
        grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        return on_grid(self.adapter.patch_tokens(hidden), grid, cls_attention)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Parameters
        ----------
        pixel_values : Tensor of shape (B, 3, H, W)

        Returns
        -------
        image_features : Tensor of shape (B, K, E)
            Tokens in the decoder's space.
        keep_indices : Tensor of shape (B, K), int64
            Their places on the grid, ascending.
        """
        tokens = self.tokens(pixel_values)
        for stage in self.stages:
            tokens = stage(tokens)
        # The projector treats each token alone, so it runs on the kept ones only.
        return self.adapter.projector(tokens.features), tokens.indices


class DownsampledImage(nn.Module):
    """Baseline: shrink the image until the encoder itself gives the wanted number of tokens.

    Parameters
    ----------
    encoder : VisionEncoder
        Without stages.
    grid : (int, int)
        Rows and columns of tokens wanted.
    """

    def __init__(self, encoder: VisionEncoder, grid: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = encoder
        patch = encoder.adapter.facts.encoder.patch_size
        self.size = (grid[0] * patch, grid[1] * patch)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (B, 3, H, W) at the smaller size; see :class:`VisionEncoder`."""
        small = nn.functional.interpolate(pixel_values, self.size, mode="bicubic", antialias=True)
        features, indices = self.encoder(small)
        return features, indices


class NoImage(nn.Module):
    """Baseline: the decoder sees the question alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """No tokens: (B, 0, E) and (B, 0)."""
        images = pixel_values.shape[0]
        return torch.zeros(images, 0, self.width), torch.zeros(images, 0, dtype=torch.long)

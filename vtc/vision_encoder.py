"""Pixels to projected visual tokens, with the recipe's encoder stages in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vtc.encoder_readings import read
from vtc.models.base import VLMAdapter
from vtc.selectors.base import NOTHING, Needs
from vtc.stages.prune import Prune
from vtc.visual_tokens import TextEmbeddings, VisualTokens, on_grid


class VisionEncoder(nn.Module):
    """Vision encoder, stages and projector; the module that is exported as `vision_encoder.onnx`.

    Parameters
    ----------
    adapter : VLMAdapter
    layers : sequence of int
        Encoder layers to run, ascending; those behind the feature layer are never needed.
    stages : sequence of modules
        Each maps :class:`VisualTokens` to :class:`VisualTokens`.
    needs : Needs
        What the stages' selectors read.
    """

    def __init__(
        self,
        adapter: VLMAdapter,
        layers: Sequence[int],
        stages: Sequence[nn.Module] = (),
        needs: Needs = NOTHING,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.layers = tuple(layers)
        self.stages = nn.ModuleList(stages)
        self.needs = needs

    @property
    def read_layers(self) -> list[int]:
        """Layers whose input is wanted, of those that run; ascending."""
        return sorted({reading.layer for reading in self.needs.readings} & set(self.layers))

    def tokens(self, pixel_values: Tensor) -> VisualTokens:
        """All visual tokens of images (B, 3, H, W) in the encoder's space, before any stage."""
        hidden = self.adapter.embed_patches(pixel_values)
        inputs: dict[int, Tensor] = {}
        for layer in self.layers:
            if layer in self.read_layers:
                inputs[layer] = hidden
            hidden = self.adapter.encoder_layer(layer, hidden)
        patch = self.adapter.facts.encoder.patch_size
        grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        return self.noted(hidden, inputs, grid)

    def noted(self, hidden: Tensor, inputs: Mapping[int, Tensor], grid: tuple[int, int]) -> VisualTokens:
        """Visual tokens with the readings that selectors need.

        Parameters
        ----------
        hidden : Tensor of shape (B, [1 +] N, D)
            Output of the last layer that runs.
        inputs : mapping of layer to Tensor of the same shape
            Inputs of the layers that are read; a layer that is not among them reads `hidden`.
        grid : (int, int)
        """
        readings = {
            reading: read(self.adapter, reading, inputs.get(reading.layer, hidden)) for reading in self.needs.readings
        }
        return on_grid(self.adapter.patch_tokens(hidden), grid, readings)

    def through_stages(self, tokens: VisualTokens) -> VisualTokens:
        """Visual tokens behind the last stage."""
        for stage in self.stages:
            if isinstance(stage, Prune) and stage.selector.needs.projected and tokens.projected is None:
                tokens = replace(tokens, projected=self.adapter.projector(tokens.features))
            tokens = stage(tokens)
        return tokens

    def compress(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """Stages and projector; returns as :meth:`forward` does."""
        tokens = self.through_stages(tokens)
        # The projector treats each token alone, so it runs on the kept ones only, unless a selector wanted all.
        projected = self.adapter.projector(tokens.features) if tokens.projected is None else tokens.projected
        return projected, tokens.indices

    def forward(self, pixel_values: Tensor, text: TextEmbeddings | None = None) -> tuple[Tensor, Tensor]:
        """Encode images.

        Parameters
        ----------
        pixel_values : Tensor of shape (B, 3, H, W)
        text : TextEmbeddings or None
            The questions, where `needs.text` says so.

        Returns
        -------
        image_features : Tensor of shape (B, K, E)
            Tokens in the decoder's space.
        keep_indices : Tensor of shape (B, K), int64
            Their places on the grid, ascending.
        """
        return self.compress(replace(self.tokens(pixel_values), text=text))


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
        self.needs = NOTHING
        patch = encoder.adapter.facts.encoder.patch_size
        self.size = (grid[0] * patch, grid[1] * patch)

    def forward(self, pixel_values: Tensor, text: TextEmbeddings | None = None) -> tuple[Tensor, Tensor]:
        """Encode images (B, 3, H, W) at the smaller size; see :class:`VisionEncoder`."""
        small = nn.functional.interpolate(pixel_values, self.size, mode="bicubic", antialias=True)
        features, indices = self.encoder(small)
        return features, indices


class NoImage(nn.Module):
    """Baseline: the decoder sees the question alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.needs = NOTHING
        self.width = width

    def forward(self, pixel_values: Tensor, text: TextEmbeddings | None = None) -> tuple[Tensor, Tensor]:
        """No tokens: (B, 0, E) and (B, 0)."""
        images = pixel_values.shape[0]
        return torch.zeros(images, 0, self.width), torch.zeros(images, 0, dtype=torch.long)

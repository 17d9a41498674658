"""Relevance: a small convolutional network reads how the text attends in a shallow layer and says what matters.

Lei et al. 2025, arXiv 2506.01097, who teach a network to tell from the decoder's first layer what an explanation by
gradients over the whole model would say. The attention that the text behind the image gives to the visual tokens in the
layer in front of the cut, mean over heads and over the text, is a signal along raster order; five depthwise-separable
convolutions of 32 to 512 channels turn it into a logit per token. In front of layer 1 it is the first layer that is
read; the paper prunes the decoder's input by it, and so runs that layer's attention ahead.

Assumed, for want of the authors' code: channels double from layer to layer, kernels are 5 wide, ReLU follows each layer
and no normalisation does, a pointwise convolution makes the logit, and the input is the logarithm of attention plus
1e-9, standardised within each image.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import Self

from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.selectors.decoder.base import DecoderScorer, DecoderTokens, mean_over_queries
from vtc.selectors.trained import fill, read_trained

CHANNELS = (1, 32, 64, 128, 256, 512)
KERNEL = 5


class Relevance(DecoderScorer):
    """Top-k of the relevance that a trained network reads off the text's attention.

    Parameters
    ----------
    adapter : VLMAdapter
    behind, before : int
        Decoder layers around the cut, as the model numbers them.
    """

    reads_before = True

    def __init__(self, adapter: VLMAdapter, behind: int, before: int) -> None:
        super().__init__(adapter, behind, before)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(CHANNELS):
            layers += [
                nn.Conv1d(inputs, inputs, KERNEL, padding=KERNEL // 2, groups=inputs),
                nn.Conv1d(inputs, outputs, 1),
                nn.ReLU(),
            ]
        self.network = nn.Sequential(*layers, nn.Conv1d(CHANNELS[-1], 1, 1))

    @classmethod
    def from_checkpoint(cls, path: Path, adapter: VLMAdapter, behind: int, before: int, *, model_digest: str) -> Self:
        """Load a trained network.

        Parameters
        ----------
        path : Path
            A safetensors file with the network's tensors and, as metadata, ``model_sha256`` of the model and
            ``decoder_layer`` that it was trained on.
        adapter, behind, before
            As for the class.
        model_digest : str
            SHA-256 of the model that runs here.

        Raises
        ------
        InputError
            If the file is missing or damaged, or was trained on another model or another layer.
        """
        selector = cls(adapter, behind, before)
        tensors, metadata = read_trained(path, "relevance network", model_digest)
        if metadata.get("decoder_layer") != str(selector.layer):
            raise InputError(
                f"{path}: relevance network reads decoder layer {metadata.get('decoder_layer')}, "
                f"here it would read layer {selector.layer}; train it again"
            )
        fill(selector, tensors, path, "relevance network")
        return selector

    def score(self, tokens: DecoderTokens) -> Tensor:
        """Logit of each token's relevance, (I, K)."""
        return self.logits(self.row(tokens))

    def row(self, tokens: DecoderTokens) -> Tensor:
        """The attention that the network reads, (I, K): mean over heads and over the text that asks."""
        return mean_over_queries(self.attention(tokens, tokens.queries), tokens.query_mask.float())

    def logits(self, row: Tensor) -> Tensor:
        """Logits (I, K), float32, of a row of attention (I, K)."""
        level = torch.log(row + 1e-9)
        centred = level - level.mean(dim=1, keepdim=True)
        deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
        standard = centred / deviation.clamp(min=1e-3)
        logits: Tensor = self.network(standard.unsqueeze(1).to(next(self.network.parameters()).dtype))
        return logits.squeeze(1).float()

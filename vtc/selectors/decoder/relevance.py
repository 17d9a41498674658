"""Relevance: a small convolutional network reads how the text attends in a shallow layer and says what matters.

Lei et al. 2025, arXiv 2506.01097, who teach a network to tell from the decoder's first layer what an explanation by
gradients over the whole model would say. The attention that the text after the image gives to the visual tokens in the
layer before the cut, mean over heads and over the text, is a signal along raster order; five depthwise-separable
convolutions of 32 to 512 channels turn it into a logit per token. Before layer 1 it is the first layer that is read;
the paper prunes the decoder's input by it, and so runs that layer's attention ahead.

Assumed, for want of the authors' code: channels double from layer to layer, kernels are 5 wide, ReLU follows each layer
and no normalisation does, a pointwise convolution makes the logit, and the input is the logarithm of attention plus
1e-9, standardised within each image.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from vtc.models.base import VLMAdapter
from vtc.recipe.selectors.decoder.relevance import CHANNELS, KERNEL, RelevanceEntry
from vtc.selectors.decoder.base import DecoderScorer, DecoderTokens, mean_over_queries
from vtc.selectors.trained import TrainedPart


class Relevance(DecoderScorer[RelevanceEntry], TrainedPart):
    """Top-k of the relevance that a trained network reads off the text's attention; parameters as for its base."""

    noun = "relevance network"

    def __init__(self, entry: RelevanceEntry, adapter: VLMAdapter, after: int, before: int) -> None:
        super().__init__(entry, adapter, after, before)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(CHANNELS):
            layers += [
                nn.Conv1d(inputs, inputs, KERNEL, padding=KERNEL // 2, groups=inputs),
                nn.Conv1d(inputs, outputs, 1),
                nn.ReLU(),
            ]
        self.network = nn.Sequential(*layers, nn.Conv1d(CHANNELS[-1], 1, 1))

    @property
    def made_for(self) -> Mapping[str, str]:
        return {"decoder_layer": str(self.layer)}

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

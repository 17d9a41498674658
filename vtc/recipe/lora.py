"""Low-rank updates of the decoder in a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vtc.facts.model import DecoderFacts
from vtc.recipe.values import Written


class Lora(Written):
    """A low-rank update of each linear layer of the decoder, merged into its weights (LoRA, arXiv 2106.09685)."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of an update."""
    alpha: Annotated[int, Field(ge=1)] = 32
    """An update is alpha / rank times the product of its two factors."""

    def parameters(self, decoder: DecoderFacts) -> int:
        """Return the number of parameters of all updates of a decoder."""
        return decoder.layers * self.rank * sum(given + made for given, made in linear_layers(decoder))


def linear_layers(decoder: DecoderFacts) -> list[tuple[int, int]]:
    """Inputs and outputs of each linear layer of a decoder layer; stacked experts are none."""
    width, heads, keys = decoder.width, decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    attention = [(width, heads), (width, keys), (width, keys), (heads, width)]
    inner = [(width, decoder.ffn)] * (1 + decoder.gated_ffn) + [(decoder.ffn, width)]
    return attention + (inner if decoder.experts == 1 else [])

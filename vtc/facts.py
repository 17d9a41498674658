"""The sizes of a model that a plan is computed from: plain integers, read once from its configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderFacts:
    """Sizes of the vision encoder.

    Attributes
    ----------
    layers, width, heads, ffn
        Transformer layers, hidden size, attention heads, inner size of the feed-forward block.
    patch_size
        Side of a patch in pixels.
    has_cls
        Whether a CLS token runs beside the patches.
    feature_layer
        0-based layer whose output goes to the projector; LLaVA-1.5's ``-2`` of 24 layers is 22. Later
        layers are not computed.
    """

    layers: int
    width: int
    heads: int
    ffn: int
    patch_size: int
    has_cls: bool
    feature_layer: int


@dataclass(frozen=True)
class DecoderFacts:
    """Sizes of the language decoder.

    Attributes
    ----------
    layers, width, heads, kv_heads, head_dim, ffn
        Transformer layers, hidden size, query heads, key-value heads, size of one head, inner size of the
        feed-forward block.
    vocab
        Entries of the output head.
    context
        Longest sequence, in tokens.
    gated_ffn
        Three matrices in the feed-forward block (Llama) and not two.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    gated_ffn: bool


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a vision-language model.

    Attributes
    ----------
    family, model_type
        vtc's name of the family; ``model_type`` of the checkpoint's configuration.
    image_size, grid
        (H, W) in pixels and in visual tokens.
    encoder, decoder
        Their sizes.
    projector_params
        Weights that one token passes in the projector, which is one multiplication each.
    """

    family: str
    model_type: str
    image_size: tuple[int, int]
    grid: tuple[int, int]
    encoder: EncoderFacts
    decoder: DecoderFacts
    projector_params: int

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of one image before any stage."""
        return self.grid[0] * self.grid[1]

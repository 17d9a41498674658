"""The sizes of a model that a plan is computed from: plain numbers, read once from its configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vtc.facts.layout import Grid, ImageLayout


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
    merge
        Side of the square of patches that becomes one token.
    pooled
        Whether those patches are averaged; otherwise they are laid end to end.
    frames
        Frames of a video that one patch spans.
    gated_ffn
        Three matrices in the feed-forward block and not two.
    window
        Side, in patches, of the windows that most layers look at; 0 where all layers see the whole view.
    whole_layers
        Layers that see the whole view where others see windows.
    """

    layers: int
    width: int
    heads: int
    ffn: int
    patch_size: int
    has_cls: bool
    feature_layer: int
    merge: int = 1
    pooled: bool = False
    frames: int = 1
    gated_ffn: bool = False
    window: int = 0
    whole_layers: tuple[int, ...] = ()

    @property
    def token_width(self) -> int:
        """Values of one visual token in the encoder's space."""
        return self.width if self.pooled else self.width * self.merge**2


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
    position_axes
        3 where a visual token's position is time, row and column (M-RoPE), else 1.
    bidirectional
        What attends in both directions: tokens of one ``image`` to each other, all of the ``prompt``, or ``none``.
    window
        Positions that layers of sliding-window attention look back, themselves included; 0 where there are none. It
        limits the tokens of an image, too, but not a prompt that attends in both directions.
    window_layers
        Those layers.
    deepstack
        Number of decoder layers, from the first on, after which features of the encoder are added to the visual tokens
        (DeepStack).
    experts, active_experts
        Feed-forward blocks in a layer, each of size `ffn`, and those of them that a token passes.
    merged_from
        Experts that routers tell apart, where they are more than there are because some were merged; else 0.
    visual_experts
        Experts that visual tokens choose among, where those are a set of their own; else 0.
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
    position_axes: int = 1
    bidirectional: Literal["none", "image", "prompt"] = "none"
    window: int = 0
    window_layers: tuple[int, ...] = ()
    deepstack: int = 0
    experts: int = 1
    active_experts: int = 1
    merged_from: int = 0
    visual_experts: int = 0

    def with_experts(self, count: int, *, merged: bool = False) -> DecoderFacts:
        """Return the sizes with fewer experts in each layer, some dropped or some merged."""
        active = min(self.active_experts, count)
        told_apart = (self.merged_from or self.experts) if merged else 0
        return replace(self, experts=count, active_experts=active, merged_from=told_apart)

    @property
    def blocks_beyond_window(self) -> bool:
        """Whether tokens that attend to each other in both directions do so beyond a sliding window."""
        return self.bidirectional == "prompt"

    def deepstack_from(self, layer: int) -> int:
        """Blocks of DeepStack features that enter decoder layer `layer`."""
        return max(0, self.deepstack - layer)

    def hidden_width(self, layer: int) -> int:
        """Values of a token entering decoder layer `layer`: its hidden state, and the DeepStack features after it."""
        return self.width * (1 + self.deepstack_from(layer))


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a vision-language model that serves images of one size.

    Attributes
    ----------
    family, model_type
        vtc's name of the family; ``model_type`` of the checkpoint's configuration.
    layout
        What becomes of an image.
    encoder, decoder
        Their sizes.
    projector_params
        Weights that one token passes in the projector, which is one multiplication each.
    deepstack_params
        Of those, the weights that DeepStack features pass, which only kept tokens have.
    """

    family: str
    model_type: str
    layout: ImageLayout
    encoder: EncoderFacts
    decoder: DecoderFacts
    projector_params: int
    deepstack_params: int = 0

    @property
    def image_size(self) -> Grid:
        """Rows and columns of pixels of the images that are served."""
        return self.layout.image_size

    @property
    def grid(self) -> Grid | None:
        """Rows and columns of an image's visual tokens; None where they form several grids."""
        return self.layout.grids[0] if len(self.layout.grids) == 1 else None

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of one span before any stage."""
        return self.layout.tokens

    @property
    def token_width(self) -> int:
        """Values of a visual token as selectors see it: of the encoder, or of the decoder where it is resampled."""
        return self.decoder.width if self.layout.resized else self.encoder.token_width

"""The vision encoder of Qwen's vision-language models: patches in squares, rotary positions, windows.

Its own forward works out windows and positions of every image from data; here they are constants of the layout. Patches
stay in the order in which the processor gives them, the four of a token together, and windows are gathered from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from vtc.errors import ModelError
from vtc.facts.layout import Block, Grid, ImageLayout, ImageOptions
from vtc.facts.model import EncoderFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.base import VLMAdapter
from vtc.models.images.pixel_specs import USUAL_IMAGE, pixel_spec
from vtc.models.parts.checks import refuse
from vtc.models.parts.language_model import rotate

FIXED_ROPE = ("default", "linear", "yarn", "llama3")
"""Rotary positions whose frequencies do not depend on how long a prompt is."""


def qwen_pixels(vision: Any, settings: Mapping[str, Any], options: ImageOptions, family: str) -> PixelSpec:
    """Pixels of images or clips of one size, as patches.

    Raises
    ------
    InputError
        If tiles are asked for.
    ModelError
        If the processor does not cut the patches that the tower takes.
    """
    refuse(options, family, "tiles")
    pixels = pixel_spec(settings, options.image_size or USUAL_IMAGE, frames=options.frames)
    wanted = vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size
    if pixels.patches != wanted:
        raise ModelError(f"the processor cuts patches (side, frames, merge) {pixels.patches}, the tower takes {wanted}")
    return pixels


def qwen_layout(pixels: PixelSpec, merge: int, time_step: float = 1.0) -> ImageLayout:
    """The layout of such pixels: a view, and a grid of tokens, for each step in time."""
    steps, rows, columns = pixels.patch_grid
    grid = rows // merge, columns // merge
    size = pixels.aspect or pixels.view
    return ImageLayout(size, grid, (Block(grid),) * steps, frames=pixels.frames, time_step=time_step)


def qwen_encoder(vision: Any, *, width: int, ffn: int, **more: Any) -> EncoderFacts:
    """Sizes of such a tower; those whose names differ from family to family are given."""
    return EncoderFacts(
        layers=vision.depth,
        width=width,
        heads=vision.num_heads,
        ffn=ffn,
        patch_size=vision.patch_size,
        has_cls=False,
        feature_layer=vision.depth - 1,
        merge=vision.spatial_merge_size,
        frames=vision.temporal_patch_size,
        **more,
    )


def check_decoder(text: Any) -> None:
    """Refuse decoders whose attention or rotary positions are not the usual ones.

    Raises
    ------
    ModelError
    """
    kind = (text.rope_parameters or {}).get("rope_type", "default")
    if kind not in FIXED_ROPE:
        raise ModelError(f"rotary positions of type '{kind}' are not supported; supported: {', '.join(FIXED_ROPE)}")
    section = (text.rope_parameters or {}).get("mrope_section")
    half = (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) // 2
    if section is not None and (len(section) != 3 or sum(section) != half):
        raise ModelError(
            f"mrope_section {str(section)[:40]} of config.json does not share out the {half} rotary positions of a "
            "head; take the config.json that belongs to the weights"
        )
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ModelError("a sliding window over positions of three axes is not supported; set use_sliding_window false")


class PatchMerger(nn.Module):
    """A tower's merger on tokens (B, K, F) whose patches are laid end to end; it takes patches one after the other.

    Parameters
    ----------
    merger : module
        From patches (n * merge ** 2, D) to tokens (n, E).
    width : int
        D.
    """

    def __init__(self, merger: nn.Module, width: int) -> None:
        super().__init__()
        self.merger = merger
        self.width = width

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, K, E)."""
        merged: Tensor = self.merger(tokens.reshape(-1, self.width))
        return merged.reshape(*tokens.shape[:-1], -1)


class QwenVision(VLMAdapter):
    """An adapter whose tower is ``model.visual``: blocks with fused queries, keys and values."""

    @property
    def _visual(self) -> Any:
        return self.model.model.visual

    @property
    def encoder_layers(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self._visual.blocks)

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        # A convolution whose stride is its size is a matrix product.
        convolution = self._visual.patch_embed.proj
        weight = convolution.weight
        hidden = nn.functional.linear(pixel_values.to(weight.dtype), weight.flatten(1), convolution.bias)
        return hidden.reshape(-1, len(self._coordinates), hidden.shape[-1])

    def encoder_layer(self, index: int, hidden: Tensor) -> Tensor:
        block: Any = self.encoder_layers[index]
        query, key, value = self._rotated(index, hidden)
        windowed = self.facts.encoder.window > 0 and index not in self.facts.encoder.whole_layers
        attend = self._attend_in_windows if windowed else nn.functional.scaled_dot_product_attention
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden + block.attn.proj(mixed)
        return cast(Tensor, hidden + block.mlp(block.norm2(hidden)))

    def encoder_queries(self, index: int, hidden: Tensor) -> Tensor:
        return self._one_rotated(index, hidden, 0)

    def encoder_keys(self, index: int, hidden: Tensor) -> Tensor:
        return self._one_rotated(index, hidden, 1)

    def encoder_window(self, index: int) -> Tensor | None:
        encoder = self.facts.encoder
        if not encoder.window or index in encoder.whole_layers:
            return None
        window = torch.tensor([(row // encoder.window, column // encoder.window) for row, column in self._coordinates])
        return (window[:, None] == window[None, :]).all(dim=-1)

    def cells(self, patches: Tensor) -> Tensor:
        return patches.reshape(patches.shape[0], -1, self.facts.encoder.merge**2, patches.shape[-1])

    @property
    def projector(self) -> nn.Module:
        return PatchMerger(self._visual.merger, self.facts.encoder.width)

    @property
    def image_token_id(self) -> int:
        """Token id of the placeholder, which for clips is another one."""
        config = self.model.config
        return int(config.video_token_id if self.facts.layout.frames > 1 else config.image_token_id)

    @property
    def _coordinates(self) -> Sequence[tuple[int, int]]:
        """Row and column of each patch of a view, in the processor's order."""
        return patch_coordinates(self.facts.layout.view_grid, self.facts.encoder.merge)

    def _rotated(self, index: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated by rows and columns, and values, each (views, H, n, Dh)."""
        block: Any = self.encoder_layers[index]
        views, patches, _ = hidden.shape
        fused = block.attn.qkv(block.norm1(hidden)).reshape(views, patches, 3, self.facts.encoder.heads, -1)
        query, key, value = fused.permute(2, 0, 3, 1, 4).unbind(0)
        return self._turned(query), self._turned(key), value

    def _one_rotated(self, index: int, hidden: Tensor, part: int) -> Tensor:
        """Queries (`part` 0) or keys (1) alone, rotated, all heads in a row, (views, n, D)."""
        block: Any = self.encoder_layers[index]
        rows = slice(part * hidden.shape[-1], (part + 1) * hidden.shape[-1])
        fused = block.attn.qkv
        own = nn.functional.linear(block.norm1(hidden), fused.weight[rows], fused.bias[rows])
        heads = own.reshape(*hidden.shape[:2], self.facts.encoder.heads, -1).transpose(1, 2)
        return self._turned(heads).transpose(1, 2).flatten(2)

    def _turned(self, heads: Tensor) -> Tensor:
        """Heads (views, H, n, Dh), rotated by their patches' rows and columns."""
        places = torch.tensor(self._coordinates, device=heads.device)
        cosines, sines = (part.unsqueeze(0) for part in self._visual.rotary_pos_emb(heads, places))
        return rotate(heads.float(), cosines, sines).to(heads.dtype)

    def _attend_in_windows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention (views, H, n, Dh) within windows; those at the edges are filled up with what nobody sees."""
        encoder = self.facts.encoder
        constants = patch_windows(self.facts.layout.view_grid, encoder.merge, encoder.window)
        order, real, back = (torch.tensor(part, device=query.device) for part in constants)
        count, size = order.shape
        views, heads, _, width = query.shape

        def gathered(part: Tensor) -> Tensor:
            return part.index_select(2, order.flatten()).reshape(views * heads, count, size, width)

        # Numbers to add, of a finite minimum: a mask of truth values exports to more, for rows that see nothing.
        bias = torch.where(real, 0.0, torch.finfo(query.dtype).min).to(query.dtype)[None, :, None, :]
        mixed = nn.functional.scaled_dot_product_attention(gathered(query), gathered(key), gathered(value), bias)
        return mixed.reshape(views, heads, count * size, width).index_select(2, back)


@cache
def patch_coordinates(grid: Grid, merge: int) -> Sequence[tuple[int, int]]:
    """Row and column of each patch of a grid of tokens, in the processor's order: those of a token together."""
    rows, columns = grid
    return [
        (row * merge + down, column * merge + right)
        for row in range(rows)
        for column in range(columns)
        for down in range(merge)
        for right in range(merge)
    ]


@cache
def patch_windows(grid: Grid, merge: int, side: int) -> tuple[list[list[int]], list[list[bool]], list[int]]:
    """Patches of each window of `side` x `side`, which of them are real, and where each patch went."""
    members: dict[tuple[int, int], list[int]] = {}
    for patch, (row, column) in enumerate(patch_coordinates(grid, merge)):
        members.setdefault((row // side, column // side), []).append(patch)
    windows = list(members.values())
    filled = [own + own[:1] * (side**2 - len(own)) for own in windows]
    real = [[True] * len(own) + [False] * (side**2 - len(own)) for own in windows]
    went = {patch: number * side**2 + at for number, own in enumerate(windows) for at, patch in enumerate(own)}
    return filled, real, [went[patch] for patch in sorted(went)]

"""The decoder, cut into segments: runs of layers that see the same tokens and share one length of KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vtc.models.base import VLMAdapter
from vtc.visual_tokens import gather_tokens

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, each (B, Hkv, T, Dh)."""


class SegmentCache:
    """The KV cache of one segment, as `transformers`' decoder layers want it: appended to by layer index."""

    def __init__(self, layers: Sequence[int], past: Sequence[KeyValue]) -> None:
        self.entries: dict[int, KeyValue] = dict(zip(layers, past, strict=True))

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object) -> KeyValue:
        """Append keys and values (B, Hkv, S, Dh) of a layer; give back all of them, (B, Hkv, P + S, Dh)."""
        past_key, past_value = self.entries[layer_idx]
        self.entries[layer_idx] = (torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2))
        return self.entries[layer_idx]


class DecoderSegment(nn.Module):
    """A run of decoder layers; one graph of it serves prefill and decode.

    Parameters
    ----------
    adapter : VLMAdapter
    layers : sequence of int
        The model's own layer numbers, ascending.
    last : bool
        Whether the final norm and the head follow.
    taps : bool
        Whether the input of the last layer is given out too, for a selector behind this segment.
    """

    def __init__(self, adapter: VLMAdapter, layers: Sequence[int], *, last: bool, taps: bool = False) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.taps = taps
        self.last = last
        self.blocks = nn.ModuleList([adapter.decoder_layers[layer] for layer in self.layers])
        self.rotary = adapter.rotary
        self.norm = adapter.final_norm if last else nn.Identity()
        self.head = adapter.head if last else nn.Identity()

    def forward(
        self, hidden: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[KeyValue]
    ) -> tuple[Tensor, list[KeyValue], Tensor | None]:
        """Run the layers over S new tokens behind P cached ones.

        Parameters
        ----------
        hidden : Tensor of shape (B, S, E)
            Embeddings or the hidden states of the segment before.
        attention_mask : Tensor of shape (B, P + S), int64
            1 for tokens, 0 for padding.
        position_ids : Tensor of shape (B, S), int64
        past : one (key, value) per layer, each of shape (B, Hkv, P, Dh)

        Returns
        -------
        Tensor
            Hidden states (B, S, E); in the last segment the logits of the last token, (B, 1, vocabulary).
        list of (key, value)
            The cache with the new tokens, each of shape (B, Hkv, P + S, Dh).
        Tensor of shape (B, S, E) or None
            Hidden states entering the last layer, where the segment `taps`.
        """
        cache = SegmentCache(self.layers, past)
        mask = causal_mask(attention_mask, hidden.shape[1], hidden.dtype)
        rotation = self.rotary(hidden, position_ids)
        tapped = None
        for block in self.blocks:
            tapped = hidden if self.taps else None
            hidden = block(
                hidden,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                position_embeddings=rotation,
            )
        if self.last:
            hidden = self.head(self.norm(hidden[:, -1:]))
        return hidden, [cache.entries[layer] for layer in self.layers], tapped


def causal_mask(attention_mask: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """What to add to attention scores, (B, 1, S, T): 0 where a token may look, the type's minimum elsewhere.

    The last S = `length` of the T tokens of `attention_mask` (B, T) are the queries. The minimum is finite, so a
    padding row that may look nowhere still has a softmax.
    """
    total = attention_mask.shape[1]
    keys = torch.arange(total, device=attention_mask.device)
    causal = keys[None, :] <= keys[total - length :, None]
    allowed = causal[None, None] & attention_mask.bool()[:, None, None]
    return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)


class GatherTokens(nn.Module):
    """Between segments: keep only some tokens."""

    def forward(self, hidden: Tensor, indices: Tensor) -> Tensor:
        """The rows `indices` (B, T) of hidden states (B, S, E)."""
        return gather_tokens(hidden, indices)


class MergeTokens(nn.Module):
    """Between segments: tokens that sat out some layers come back unchanged among those that went on."""

    def forward(self, full_hidden: Tensor, hidden: Tensor, indices: Tensor) -> Tensor:
        """Rows `indices` (B, S) of `full_hidden` (B, S, E) and `hidden` (B, T, E) laid end to end.

        A gather rather than a scatter, so padding can never overwrite a token.
        """
        both = torch.cat([full_hidden, hidden], dim=1)
        return gather_tokens(both, indices)

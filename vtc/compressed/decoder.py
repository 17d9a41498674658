"""The decoder, cut into segments: runs of layers that see the same tokens and share one length of KV cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtc.models.base import VLMAdapter
from vtc.models.parts.split_mixture import ModalityRows, tell_rows
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


class FixedCache(SegmentCache):
    """A cache of fixed length, written in place: one token at a time, where the segment's mask says that it is.

    Parameters
    ----------
    layers : sequence of int
    past : one (key, value) per layer, each of shape (B, Hkv, T, Dh)
        T is the longest length; what is not a token yet is finite.
    place : Tensor of shape (1,), int64
        Where the next token's keys and values go.
    """

    def __init__(self, layers: Sequence[int], past: Sequence[KeyValue], place: Tensor) -> None:
        super().__init__(layers, past)
        self.place = place

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object) -> KeyValue:
        """Write keys and values (B, Hkv, 1, Dh) of a layer; give back the whole cache, (B, Hkv, T, Dh)."""
        keys, values = self.entries[layer_idx]
        keys.index_copy_(2, self.place, key)
        values.index_copy_(2, self.place, value)
        return keys, values


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
        Whether the input of the last layer is given out too, for a selector after this segment.
    begins : int
        Layer whose DeepStack features come first among those that come in (see :class:`vtc.facts.model.DecoderFacts`).
    """

    def __init__(
        self, adapter: VLMAdapter, layers: Sequence[int], *, last: bool, taps: bool = False, begins: int = 0
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.layers = tuple(layers)
        self.taps = taps
        self.last = last
        self.begins = begins
        self.blocks = nn.ModuleList([adapter.decoder_layers[layer] for layer in self.layers])
        self.norm = adapter.final_norm if last else nn.Identity()
        self.head = adapter.head if last else nn.Identity()

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: Sequence[KeyValue] | FixedCache,
        block_ids: Tensor | None = None,
        key_position_ids: Tensor | None = None,
        wanted: int = 1,
        rows: ModalityRows | None = None,
    ) -> tuple[Tensor, list[KeyValue], Tensor | None]:
        """Run the layers over S new tokens after P cached ones.

        Parameters
        ----------
        hidden : Tensor of shape (B, S, E')
            Embeddings or the hidden states of the segment before, and after them DeepStack features.
        attention_mask : Tensor of shape (B, P + S), int64
            1 for tokens, 0 for padding.
        position_ids : Tensor of shape (B, S) or (3, B, S), int64
        past : one (key, value) per layer, each of shape (B, Hkv, P, Dh), or a FixedCache
            The latter for one new token, with a mask of the cache's length.
        block_ids : Tensor of shape (B, P + S), int64, or None
            For decoders that attend in both directions: the group of each token (see
            :func:`vtc.inputs.schedule.attention_blocks`), -1 for cached ones.
        key_position_ids : Tensor of shape (B, P + S), int64, or None
            For decoders with sliding windows: positions of cached and new tokens.
        wanted : int
            In the last segment, tokens at the end whose logits are wanted.
        rows : ModalityRows or None
            For decoders whose visual tokens have experts of their own; None where all tokens are text.

        Returns
        -------
        Tensor
            Hidden states (B, S, E'); in the last segment the logits of the last tokens, (B, wanted, vocabulary).
        list of (key, value)
            The cache with the new tokens, each of shape (B, Hkv, P + S, Dh).
        Tensor of shape (B, S, E) or None
            Hidden states entering the last layer, where the segment `taps`.
        """
        facts = self.adapter.facts.decoder
        cache = past if isinstance(past, SegmentCache) else SegmentCache(self.layers, past)
        windows = {layer in facts.window_layers for layer in self.layers}
        masks = {
            windowed: attention_bias(
                attention_mask,
                hidden,
                block_ids,
                key_position_ids,
                facts.window if windowed else 0,
                beyond=facts.blocks_beyond_window,
            )
            for windowed in windows
        }
        with tell_rows(self.blocks, rows):
            after, entering = run_layers(self.adapter, self.layers, hidden, masks, position_ids, cache, self.begins)
        if self.last:
            after = self.head(self.norm(after[:, -wanted:]))
        elif facts.deepstack_from(self.layers[-1] + 1):
            deepstack = hidden[..., facts.width :]
            left = deepstack[..., (self.layers[-1] + 1 - self.begins) * facts.width :]
            after = torch.cat([after, left], dim=-1)
        return after, [cache.entries[layer] for layer in self.layers], entering if self.taps else None


def run_layers(
    adapter: VLMAdapter,
    layers: Sequence[int],
    hidden: Tensor,
    biases: Mapping[bool, Tensor],
    position_ids: Tensor,
    cache: SegmentCache | None = None,
    begins: int = 0,
) -> tuple[Tensor, Tensor]:
    """Run decoder layers, and add DeepStack features after the first of a model's.

    Parameters
    ----------
    adapter : VLMAdapter
    layers : sequence of int
        The model's own layer numbers, ascending.
    hidden : Tensor of shape (B, S, E')
        Hidden states, and after them DeepStack features.
    biases : mapping of bool to Tensor of shape (B, 1, S, T)
        What to add to attention scores, in layers with a sliding window (True) and without.
    position_ids : Tensor of shape (B, S) or (3, B, S), int64
    cache : SegmentCache or None
        None keeps nothing.
    begins : int
        As for :class:`DecoderSegment`.

    Returns
    -------
    after, entering : Tensors of shape (B, S, E)
        Hidden states after the last layer, and as they enter it.
    """
    facts = adapter.facts.decoder
    deepstack, hidden = hidden[..., facts.width :], hidden[..., : facts.width]
    rotations = {windowed: adapter.rotation(hidden, position_ids, windowed) for windowed in biases}
    entering = hidden
    for layer in layers:
        entering, windowed = hidden, layer in facts.window_layers
        hidden = adapter.decoder_layer(layer, hidden, biases[windowed], rotations[windowed], cache)
        if layer < facts.deepstack:
            place = (layer - begins) * facts.width
            hidden = hidden + deepstack[..., place : place + facts.width]
    return hidden, entering


def attention_bias(
    attention_mask: Tensor,
    hidden: Tensor,
    block_ids: Tensor | None = None,
    key_position_ids: Tensor | None = None,
    window: int = 0,
    *,
    beyond: bool = False,
) -> Tensor:
    """What to add to attention scores, (B, 1, S, T): 0 where a token may look, the type's minimum elsewhere.

    The minimum is finite, so a padding row that may look nowhere still has a softmax.

    Parameters
    ----------
    attention_mask : Tensor of shape (B, T)
        Its last S tokens are the queries.
    hidden : Tensor of shape (B, S, E)
        Whose length and type count.
    block_ids, key_position_ids, window, beyond
        As for :func:`visible`.
    """
    seen = visible(attention_mask, hidden.shape[1], block_ids, key_position_ids, window, beyond=beyond)
    return torch.where(seen[:, None], 0.0, torch.finfo(hidden.dtype).min).to(hidden.dtype)


def visible(
    attention_mask: Tensor,
    length: int,
    block_ids: Tensor | None = None,
    key_position_ids: Tensor | None = None,
    window: int = 0,
    *,
    beyond: bool = False,
) -> Tensor:
    """Where a token may look, (B, S, T), bool.

    It looks back, at tokens of its own block in both directions, and no further back than a window.

    Parameters
    ----------
    attention_mask : Tensor of shape (B, T)
    length : int
        S: so many tokens at the end look.
    block_ids, key_position_ids : Tensors of shape (B, T) or None
    window : int
        Positions to look back, the token's own included; 0 is without limit.
    beyond : bool
        Whether tokens of a block see each other beyond the window.
    """
    total = attention_mask.shape[1]
    keys = torch.arange(total, device=attention_mask.device)
    allowed = (keys[None, :] <= keys[total - length :, None])[None]
    near = None
    if window and key_position_ids is not None:
        own = key_position_ids[:, total - length :, None]
        near = own - key_position_ids[:, None, :] < window
    if near is not None and beyond:
        allowed = allowed & near
    if block_ids is not None:
        own = block_ids[:, total - length :, None]
        allowed = allowed | ((own == block_ids[:, None, :]) & (own >= 0))
    if near is not None and not beyond:
        allowed = allowed & near
    return allowed & attention_mask.bool()[:, None]


class GatherTokens(nn.Module):
    """Between segments: keep only some tokens."""

    def forward(self, hidden: Tensor, indices: Tensor) -> Tensor:
        """The rows `indices` (B, T) of hidden states (B, S, E)."""
        return gather_tokens(hidden, indices)


class MergeTokens(nn.Module):
    """Between segments: tokens that sat out some layers come back unchanged among those that went on.

    Parameters
    ----------
    width : int
        Of hidden states, without the DeepStack features after them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, full_hidden: Tensor, hidden: Tensor, indices: Tensor) -> Tensor:
        """Rows `indices` (B, S) of `full_hidden` (B, S, E) and `hidden` (B, T, E) laid end to end.

        A gather rather than a scatter, so padding can never overwrite a token.
        """
        # DeepStack features of layers that were sat out are left out.
        sat_out = full_hidden.shape[-1] - hidden.shape[-1]
        if sat_out:
            kept = full_hidden[..., : self.width], full_hidden[..., self.width + sat_out :]
            full_hidden = torch.cat(kept, dim=-1)
        both = torch.cat([full_hidden, hidden], dim=1)
        return gather_tokens(both, indices)

"""What the encoder can note in a layer for selectors; the kinds are those of :class:`vtc.recipe.needs.Reading`.

Each is computed from the layer's own queries and keys, and only what is asked for is: a CLS row costs one row and not
an N x N map, and the layer itself keeps its fused attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vtc.compressed.assembly import assemble
from vtc.models.base import VLMAdapter
from vtc.recipe.needs import Reading, ReadingKind


def read(adapter: VLMAdapter, reading: Reading, hidden: Tensor) -> Tensor:
    """Take a reading.

    Parameters
    ----------
    adapter : VLMAdapter
    reading : Reading
    hidden : Tensor of shape (B, [1 +] N, D)
        Input of the reading's layer.

    Returns
    -------
    Tensor
        Float32, of the shape that the reading's kind says.
    """
    return _READERS[reading.kind](adapter, reading.layer, hidden)


def read_tokens(adapter: VLMAdapter, reading: Reading, hidden: Tensor) -> Tensor:
    """Take a reading, one row for each span of an image.

    Of a token made of several patches it is the mean over those; hidden states are put together as the features are. Of
    a span made of several views, each with a CLS token, the CLS state is the mean over these.
    """
    values = read(adapter, reading, hidden)
    if reading.kind == "cls_state":
        return values.reshape(-1, adapter.facts.layout.span_views, values.shape[-1]).mean(dim=1)
    if adapter.facts.encoder.merge > 1 and reading.kind != "hidden_states":
        values = _token_means(adapter, values)
        if reading.kind == "patch_attention":
            values = _token_means(adapter, values.transpose(1, 2)).transpose(1, 2)
    return values if reading.kind == "patch_attention" else assemble(values, adapter.facts.layout)


def _token_means(adapter: VLMAdapter, values: Tensor) -> Tensor:
    """Means (V, N, ...) over each token's patches of values (V, n, ...)."""
    flat = values.reshape(*values.shape[:2], -1)
    return adapter.cells(flat).mean(dim=2).reshape(values.shape[0], -1, *values.shape[2:])


def _cls_attention(adapter: VLMAdapter, layer: int, hidden: Tensor) -> Tensor:
    return torch.softmax(_cls_scores(adapter, layer, hidden), dim=-1)[:, :, 0, 1:].mean(dim=1)


def _cls_logits(adapter: VLMAdapter, layer: int, hidden: Tensor) -> Tensor:
    return _cls_scores(adapter, layer, hidden)[:, :, 0, 1:].mean(dim=1)


def _received_attention(adapter: VLMAdapter, layer: int, hidden: Tensor) -> Tensor:
    return _patches(adapter, _attention(adapter, layer, hidden).mean(dim=(1, 2)))


def _patch_attention(adapter: VLMAdapter, layer: int, hidden: Tensor) -> Tensor:
    rows = adapter.patch_tokens(_attention(adapter, layer, hidden).mean(dim=1))
    return adapter.patch_tokens(rows.transpose(1, 2)).transpose(1, 2)


def _one_head_cls_attention(adapter: VLMAdapter, layer: int, hidden: Tensor) -> Tensor:
    return torch.softmax(_cls_scores(adapter, layer, hidden, heads=1), dim=-1)[:, 0, 0, 1:]


def _keys(adapter: VLMAdapter, layer: int, hidden: Tensor) -> Tensor:
    keys = _full_keys(adapter, layer, hidden)
    return keys.reshape(*keys.shape[:2], adapter.facts.encoder.heads, -1).mean(dim=2)


def _full_keys(adapter: VLMAdapter, layer: int, hidden: Tensor) -> Tensor:
    return adapter.patch_tokens(adapter.encoder_keys(layer, hidden)).float()


def _hidden_states(adapter: VLMAdapter, layer: int, hidden: Tensor) -> Tensor:
    return adapter.view_tokens(hidden).float()


def _cls_state(adapter: VLMAdapter, layer: int, hidden: Tensor) -> Tensor:
    return hidden[:, 0].float()


_READERS: dict[ReadingKind, Callable[[VLMAdapter, int, Tensor], Tensor]] = {
    "cls_attention": _cls_attention,
    "cls_logits": _cls_logits,
    "received_attention": _received_attention,
    "patch_attention": _patch_attention,
    "one_head_cls_attention": _one_head_cls_attention,
    "keys": _keys,
    "full_keys": _full_keys,
    "hidden_states": _hidden_states,
    "cls_state": _cls_state,
}


def _cls_scores(adapter: VLMAdapter, layer: int, hidden: Tensor, heads: int | None = None) -> Tensor:
    """Scores (B, H, 1, 1 + N) of the CLS token to all, before the softmax."""
    return _scores(adapter, layer, hidden[:, :1], hidden, heads or adapter.facts.encoder.heads)


def _attention(adapter: VLMAdapter, layer: int, hidden: Tensor) -> Tensor:
    """The whole map (B, H, T, T)."""
    scores = _scores(adapter, layer, hidden, hidden, adapter.facts.encoder.heads)
    seen = adapter.encoder_window(layer)
    return torch.softmax(scores if seen is None else scores.masked_fill(~seen.to(scores.device), -torch.inf), dim=-1)


def _scores(adapter: VLMAdapter, layer: int, asking: Tensor, hidden: Tensor, heads: int) -> Tensor:
    query = _split(adapter.encoder_queries(layer, asking), heads)
    key = _split(adapter.encoder_keys(layer, hidden), heads)
    scale = 1 / math.sqrt(query.shape[-1])
    return torch.matmul(query, key.transpose(2, 3)).float() * scale


def _split(rows: Tensor, heads: int) -> Tensor:
    """(B, T, H * Dh) as (B, H, T, Dh)."""
    return rows.reshape(*rows.shape[:2], heads, -1).transpose(1, 2)


def _patches(adapter: VLMAdapter, values: Tensor) -> Tensor:
    """The patches' own of values (B, [1 +] N)."""
    return adapter.patch_tokens(values.unsqueeze(-1))[..., 0]

"""Decoder attention from matrix products and a softmax, for export: every ONNX target has those operators.

Registered with `transformers` under a name of its own, through its public interface, so that exported decoder layers
are the checkpoint's own modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

GROUPED_ATTENTION = "vtc_grouped"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention whose key-value heads are never repeated.

    The G query heads that share a key-value head are stacked along the query axis, so the products stay batched matrix
    products over key-value heads (Ainslie et al. 2023, arXiv 2305.13245). The softmax runs in float32.

    Parameters
    ----------
    query : Tensor of shape (B, Hkv * G, S, Dh)
    key, value : Tensors of shape (B, Hkv, T, Dh)
    attention_mask : Tensor of shape (B, 1, S, T), added to the scores; or None
    scaling : float
    softcap : float or None
        Limit that scores go to smoothly, before the mask.

    Returns
    -------
    Tensor of shape (B, S, Hkv * G, Dh), and None for the attention map that nobody asks for
    """
    batch, heads, length, width = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    stacked = query.reshape(batch, kv_heads, groups * length, width)
    scores = torch.matmul(stacked, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.reshape(batch, kv_heads, groups, length, -1)
    if attention_mask is not None:
        scores = scores + attention_mask.unsqueeze(1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(weights.reshape(batch, kv_heads, groups * length, -1), value)
    return output.reshape(batch, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)
AttentionMaskInterface.register(GROUPED_ATTENTION, eager_mask)

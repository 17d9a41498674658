"""The frozen decoder over packed questions, with visual tokens that a policy makes invisible.

A dropped token stays in the sequence, so that gradients can reach it, but nobody except itself sees it: the masked
forward computes what gathering the kept tokens at their original positions does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.models.base import VLMAdapter
from vtc.training.packing import Packed

UNSEEN = 1e-12
"""What a policy of 0 leaves of a key's weight: nothing in the forward pass, but a gradient."""


def answer_states(adapter: VLMAdapter, packed: Packed, features: Tensor, policy: Tensor | None = None) -> Tensor:
    """Normalised hidden states from which the answers' tokens are predicted.

    Parameters
    ----------
    adapter : VLMAdapter
        With "grouped" attention, which differentiates with respect to its mask.
    packed : Packed
    features : Tensor of shape (B, K, D)
        Encoder outputs of the visual tokens that are there.
    policy : Tensor of shape (B, K) or None
        1 where a visual token can be seen in every layer, 0 where not.

    Returns
    -------
    Tensor of shape (T, E)
    """
    embeds = adapter.embed_tokens(packed.input_ids)
    visual = adapter.projector(features).to(embeds.dtype)
    after = packed.start + packed.visual
    hidden = torch.cat([embeds[:, : packed.start], visual, embeds[:, after:]], dim=1)
    mask = attention_mask(packed, policy, hidden.dtype)
    rotation = adapter.rotation(hidden, packed.position_ids)
    for layer in adapter.decoder_layers:
        hidden = layer(
            hidden,
            attention_mask=mask,
            position_ids=packed.position_ids,
            past_key_values=None,
            use_cache=False,
            position_embeddings=rotation,
        )
    states: Tensor = adapter.final_norm(hidden[packed.rows, packed.columns])
    return states


def attention_mask(packed: Packed, policy: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What to add to attention scores, (B, 1, L, L).

    The logarithm of a policy m on a key's column multiplies its exponential by m before the softmax renormalises.

    Based on DynamicViT (Rao et al. 2021, arXiv 2106.02034), equation 11, and Dynamic-LLaVA (arXiv 2412.00876).
    """
    mask = torch.where(packed.seen, 0.0, torch.finfo(dtype).min).to(dtype)
    if policy is not None:
        length = packed.block.shape[1]
        after = length - packed.start - packed.visual
        column = torch.nn.functional.pad((policy + UNSEEN).log().to(dtype), (packed.start, after))
        others = ~torch.eye(length, dtype=torch.bool, device=mask.device)
        mask = mask + column[:, None, :] * others
    return mask[:, None]

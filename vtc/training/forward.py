"""The frozen decoder over packed questions, with visual tokens that a policy makes invisible.

A dropped token stays in the sequence, so that gradients can reach it, but nobody except itself sees it: the masked
forward computes what gathering the kept tokens at their original positions does. Positions, DeepStack features and who
sees whom are those of the compressed model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.compressed.decoder import run_layers, visible
from vtc.models.base import VLMAdapter
from vtc.training.packing import Packed

UNSEEN = 1e-12
"""What a policy of 0 leaves of a key's weight: nothing in the forward pass, but a gradient."""


def answer_states(adapter: VLMAdapter, packed: Packed, visual: Tensor, policy: Tensor | None = None) -> Tensor:
    """Normalised hidden states from which the answers' tokens are predicted.

    Parameters
    ----------
    adapter : VLMAdapter
        With "grouped" attention, which differentiates with respect to its mask.
    packed : Packed
    visual : Tensor of shape (spans, K, E')
        The visual tokens that are there, in the decoder's space; after them their DeepStack features.
    policy : Tensor of shape (spans, K) or None
        1 where a visual token can be seen in every layer, 0 where not.

    Returns
    -------
    Tensor of shape (T, E)
    """

    def by_sequence(values: Tensor) -> Tensor:
        return values.reshape(-1, len(packed.visual), *values.shape[2:])[packed.images]

    decoder = adapter.facts.decoder
    embeds = adapter.embed_tokens(packed.input_ids)
    hidden = embeds.index_copy(1, packed.visual, by_sequence(visual).to(embeds.dtype))
    seen = None if policy is None else by_sequence(policy)
    biases = {
        windowed: attention_mask(
            packed, hidden.dtype, seen, decoder.window if windowed else 0, beyond=decoder.blocks_beyond_window
        )
        for windowed in {layer in decoder.window_layers for layer in range(decoder.layers)}
    }
    hidden, _ = run_layers(adapter, range(decoder.layers), hidden, biases, packed.position_ids)
    states: Tensor = adapter.final_norm(hidden[packed.rows, packed.columns])
    return states


def attention_mask(
    packed: Packed, dtype: torch.dtype, policy: Tensor | None = None, window: int = 0, *, beyond: bool = False
) -> Tensor:
    """What to add to attention scores, (R, 1, L, L).

    The logarithm of a policy m on a key's column multiplies its exponential by m before the softmax renormalises.

    Based on DynamicViT (Rao et al. 2021, arXiv 2106.02034), equation 11, and Dynamic-LLaVA (arXiv 2412.00876).

    Parameters
    ----------
    packed : Packed
    dtype : torch.dtype
    policy : Tensor of shape (R, S * K) or None
    window, beyond
        As for :func:`vtc.compressed.decoder.visible`.
    """
    length = packed.block.shape[1]
    keys = packed.position_ids if window else None
    seen = visible(torch.ones_like(packed.block), length, packed.groups, keys, window, beyond=beyond)
    mask = torch.where(seen & packed.together, 0.0, torch.finfo(dtype).min).to(dtype)
    if policy is not None:
        column = torch.zeros_like(packed.block, dtype=dtype)
        column = column.index_copy(1, packed.visual, (policy + UNSEEN).log().to(dtype))
        others = ~torch.eye(length, dtype=torch.bool, device=mask.device)
        mask = mask + column[:, None, :] * others
    return mask[:, None]

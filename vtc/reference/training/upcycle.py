"""The reference VLM with its decoder's feed-forward blocks made mixtures of experts.

The experts share out the inner units of the block that they replace, so that a mixture has the weights of the dense
model and needs all of them. Outputs are multiplied by the number of experts, since the router's weights of the active
ones add up to one. With 2 of 8 active, the blocks cost a token a quarter of what they did.

Based on LLaMA-MoE (arXiv 2406.16554).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, MixtralConfig

EXPERTS, ACTIVE = 8, 2
ROUTER_SCALE = 0.05
"""Standard deviation of a router's weights at the start: its logits then spread by about one half."""


def mixture_config(dense: LlavaConfig) -> LlavaConfig:
    """The configuration of the mixture that a dense model becomes: a Mixtral decoder in place of a Llama one."""
    text: Any = dense.text_config
    mixture = MixtralConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size // EXPERTS,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        max_position_embeddings=text.max_position_embeddings,
        rms_norm_eps=text.rms_norm_eps,
        rope_parameters=text.rope_parameters,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        tie_word_embeddings=False,
        num_local_experts=EXPERTS,
        num_experts_per_tok=ACTIVE,
    )
    config = LlavaConfig(**{**dense.to_dict(), "text_config": mixture})
    config.dtype = None
    return config


def upcycle(dense: LlavaForConditionalGeneration, seed: int = 0) -> LlavaForConditionalGeneration:
    """Make a mixture of a dense model; its routers are as good as random.

    Parameters
    ----------
    dense : LlavaForConditionalGeneration
        With a Llama decoder.
    seed : int
        Deals out the inner units, and draws the routers.
    """
    draw = torch.Generator().manual_seed(seed)
    model = LlavaForConditionalGeneration(mixture_config(dense.config))
    state = {name: tensor for name, tensor in dense.state_dict().items() if ".mlp." not in name or "vision" in name}
    layers: Any = dense.model.language_model.layers
    for number, layer in enumerate(layers):
        block = layer.mlp
        parts = expert_weights(block.gate_proj.weight, block.up_proj.weight, block.down_proj.weight, draw)
        at = f"model.language_model.layers.{number}.mlp"
        state[f"{at}.experts.gate_up_proj"], state[f"{at}.experts.down_proj"] = parts
        state[f"{at}.gate.weight"] = ROUTER_SCALE * torch.randn(EXPERTS, parts[0].shape[-1], generator=draw)
    model.load_state_dict(state)
    model.train(False)
    return model


@torch.no_grad()
def expert_weights(gate: Tensor, up: Tensor, down: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Experts of a dense block, each with its own part of the inner units.

    Parameters
    ----------
    gate, up : Tensors of shape (F, D)
    down : Tensor of shape (D, F)
    draw : Generator
        Deals out the units.

    Returns
    -------
    gate_up : Tensor of shape (E, F, D)
        Gate and up projection of F / E units each, one after the other.
    down : Tensor of shape (E, D, F / E)
    """
    parts = torch.randperm(len(gate), generator=draw).chunk(EXPERTS)
    both = torch.stack([torch.cat([gate[units], up[units]]) for units in parts])
    return both, torch.stack([EXPERTS * down[:, units] for units in parts])

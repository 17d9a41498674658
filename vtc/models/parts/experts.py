"""Mixtures of experts from matrix products, for export: every ONNX target has those operators.

Registered with `transformers` under a name of its own, through its public interface, so that exported decoder layers
are the checkpoint's own modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

EVERY_EXPERT = "vtc_every_expert"


def every_expert(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """All experts on all tokens, each output weighted by the router: 0 where a token did not choose it.

    Which tokens an expert gets is data, and shapes must not depend on that; to gather the chosen experts' matrices for
    each token would need more memory than a prompt leaves. So a graph multiplies experts / active experts times as much
    as the model does.

    Parameters
    ----------
    module
        Experts of `transformers`: gate and up projection in one (experts, 2 * F, E), down projection (experts, E, F).
    hidden : Tensor of shape (T, E)
    chosen : Tensor of shape (T, k), int64
        Experts of each token.
    weights : Tensor of shape (T, k)
        Of those.

    Returns
    -------
    Tensor of shape (T, E)
    """
    numbers = torch.arange(module.num_experts, device=chosen.device)
    share = ((chosen.unsqueeze(-1) == numbers) * weights.unsqueeze(-1)).sum(dim=1)
    gate, up = torch.matmul(hidden, module.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
    outputs = torch.matmul(module.act_fn(gate) * up, module.down_proj.transpose(1, 2))
    return (outputs * share.T.unsqueeze(-1)).sum(dim=0).to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register(EVERY_EXPERT, every_expert)

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
    as the model does. Matrices stand on the left, one row an output, and rows of gate and up projection alternate: so
    ONNX Runtime's mixture takes them from the same file, and a graph for one token gathers them as they are.

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
    share = ((chosen.unsqueeze(-1) == numbers) * weights.to(hidden.dtype).unsqueeze(-1)).sum(dim=1)
    both: Tensor = module.gate_up_proj
    by_turns = both.reshape(len(both), 2, -1, both.shape[-1]).transpose(1, 2).reshape(both.shape)
    gate, up = torch.matmul(by_turns, hidden.T).reshape(len(both), both.shape[1] // 2, 2, -1).chunk(2, dim=2)
    inner = (module.act_fn(gate) * up).flatten(1, 2) * share.T.unsqueeze(1)
    return torch.matmul(module.down_proj, inner).sum(dim=0).T.to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register(EVERY_EXPERT, every_expert)

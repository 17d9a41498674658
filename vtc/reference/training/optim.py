"""Optimisers of the training stages: Muon for the hidden matrices, AdamW for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

#: Matrices that are not hidden layers: embeddings, read-outs and the patch convolution.
_NOT_HIDDEN = ("embed", "lm_head", "patch.", "scene.")

#: The projector passes on everything the tower found; at full rate it soon keeps only what the first questions need.
_SLOW = "multi_modal_projector"


def make_optimizers(
    modules: Sequence[nn.Module], muon_lr: float, adam_lr: float
) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Split the parameters that require gradients by kind.

    Parameters
    ----------
    modules : sequence of Module
    muon_lr, adam_lr : float
        Peak learning rates; Muon's is scaled to the root mean square of an AdamW update.

    Returns
    -------
    Muon, AdamW
    """
    hidden: list[nn.Parameter] = []
    slow: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            is_hidden = parameter.ndim == 2 and not any(part in name for part in _NOT_HIDDEN)
            matrices = slow if _SLOW in name else hidden
            (matrices if is_hidden else rest).append(parameter)
    groups: list[dict[str, object]] = (
        [{"params": hidden}, {"params": slow, "lr": 0.1 * muon_lr}] if slow else [{"params": hidden}]
    )
    muon = torch.optim.Muon(groups, lr=muon_lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return muon, adam


def schedule(optimizers: Sequence[torch.optim.Optimizer], step: int, steps: int, warmup: int) -> None:
    """Linear warm-up, then a cosine to 2 % of the peak rate."""
    progress = max(0.0, (step - warmup) / max(1, steps - warmup))
    factor = min(1.0, (step + 1) / max(1, warmup)) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

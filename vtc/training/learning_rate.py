"""The learning rate over a training run."""

from __future__ import annotations

import math

import torch

WARM_UP = 0.05
"""Share of the steps in which the rate rises."""
SMALLEST = 1e-2
"""Root mean square that a parameter counts with at least: many are 0 at first."""


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak rate."""
    warm_up = max(1, round(WARM_UP * steps))
    progress = max(0.0, (step - warm_up) / max(1, steps - warm_up))
    return min(1.0, (step + 1) / warm_up) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def set_relative_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let each parameter move by a share of its own size: what is right for one is then right for all.

    A projector's first layer takes an encoder's unnormalised features, and may be a hundred times smaller than its
    second. This is the relative step of Adafactor (arXiv 1804.04235, section 8).

    Parameters
    ----------
    optimizer : Optimizer
        With one parameter in each group.
    rate : float
        Share of the parameter's root mean square.
    """
    for group in optimizer.param_groups:
        (parameter,) = group["params"]
        group["lr"] = rate * max(float(parameter.square().mean().sqrt()), SMALLEST)

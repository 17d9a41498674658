"""The learning rate over a training run."""

from __future__ import annotations

import math

WARM_UP = 0.05
"""Share of the steps in which the rate rises."""


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak rate."""
    warm_up = max(1, round(WARM_UP * steps))
    progress = max(0.0, (step - warm_up) / max(1, steps - warm_up))
    return min(1.0, (step + 1) / warm_up) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))

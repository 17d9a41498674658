"""Masks that are hard in the forward pass and differentiable in the backward pass.

Each function returns a policy (B, N): exactly 1 for a visible token and 0 for a dropped one, with the gradient of a
soft mask under it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.selectors.base import top_k

_BISECTIONS = 60


def straight_through(logits: Tensor) -> Tensor:
    """Keep a token where the second of its two logits is the larger.

    Parameters
    ----------
    logits : Tensor of shape (B, N, 2)

    Returns
    -------
    Tensor of shape (B, N)
        Argmax forward, softmax backward; how many are kept is up to the logits, so a budget loss has to go with it.

    Based on LearnPruner (arXiv 2604.23950), M_hard and M_soft; the estimator is Bengio et al. 2013 (arXiv 1308.3432).
    """
    soft = torch.softmax(logits, dim=-1)[..., 1]
    return _hard_forward((soft > 0.5).to(soft.dtype), soft)


def soft_top_k(scores: Tensor, keep: int) -> Tensor:
    """Mask of the `keep` highest scores with the gradient of a soft mask of exactly the same size.

    Parameters
    ----------
    scores : Tensor of shape (B, N)
    keep : int

    Returns
    -------
    Tensor of shape (B, N)
        Hard top-k forward, :func:`sigmoid_top_k` backward.

    Based on VisionSelector (arXiv 2510.16598).
    """
    chosen = top_k(scores, keep)
    return _hard_forward(torch.zeros_like(scores).scatter(1, chosen, 1.0), sigmoid_top_k(scores, keep))


def sigmoid_top_k(scores: Tensor, keep: int) -> Tensor:
    """Soft mask sigmoid(x + t) whose shift t makes each row sum to `keep`.

    Parameters
    ----------
    scores : Tensor of shape (B, N)
    keep : int
        Between 1 and N - 1; with N the mask is all ones and its gradient 0.

    Returns
    -------
    Tensor of shape (B, N)

    Based on VisionSelector (arXiv 2510.16598). Bisection finds t; the Newton step after it changes t no more, but
    carries the gradient that the implicit function theorem gives it: dt/dx_j = -s'_j / sum_i s'_i.
    """
    if keep >= scores.shape[-1]:
        return 0 * scores + 1
    with torch.no_grad():
        wide = scores.double()
        edge = torch.logit(torch.tensor(keep / scores.shape[-1], dtype=wide.dtype, device=wide.device))
        low, high = edge - wide.amax(-1, keepdim=True), edge - wide.amin(-1, keepdim=True)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = torch.sigmoid(wide + middle).sum(-1, keepdim=True) < keep
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        shift = ((low + high) / 2).to(scores.dtype)
        soft = torch.sigmoid(scores + shift)
        slope = (soft * (1 - soft)).sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    excess = torch.sigmoid(scores + shift).sum(-1, keepdim=True) - keep
    return torch.sigmoid(scores + (shift - excess / slope))


def _hard_forward(hard: Tensor, soft: Tensor) -> Tensor:
    # Grouped so that the forward value is exactly hard: (hard + soft) - soft would round.
    return hard + (soft - soft.detach())

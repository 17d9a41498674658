"""Masks are hard forward, and their gradients are those of the soft mask that it stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.training.masks import sigmoid_top_k, soft_top_k, straight_through


def scores(seed: int, tokens: int = 12, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(2, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 99), keep=st.integers(1, 12), spread=st.sampled_from([0.0, 0.1, 3.0, 50.0]))
def test_soft_mask_sums_to_the_budget(seed: int, keep: int, spread: float) -> None:
    soft = sigmoid_top_k(scores(seed, spread=spread), keep)
    torch.testing.assert_close(soft.sum(dim=1), torch.full((2,), float(keep), dtype=torch.float64))
    assert ((soft >= 0) & (soft <= 1)).all()


@pytest.mark.parametrize("keep", [1, 4, 11])
def test_soft_masks_gradient_equals_finite_differences(keep: int) -> None:
    x = scores(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sigmoid_top_k(x, keep), x)


@pytest.mark.parametrize("keep", [1, 5, 12])
def test_top_k_is_hard_forward_and_soft_backward(keep: int) -> None:
    x = scores(2).float().requires_grad_()
    weights = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    mask = soft_top_k(x, keep)
    assert torch.equal(mask, torch.zeros(2, 12).scatter(1, x.topk(keep).indices, 1.0))
    (hard,) = torch.autograd.grad((mask * weights).sum(), x)
    (soft,) = torch.autograd.grad((sigmoid_top_k(x, keep) * weights).sum(), x)
    torch.testing.assert_close(hard, soft)


def test_straight_through_is_argmax_forward_and_softmax_backward() -> None:
    logits = torch.randn(2, 12, 2, generator=torch.Generator().manual_seed(3), requires_grad=True)
    mask = straight_through(logits)
    assert torch.equal(mask, logits.argmax(-1).float())
    (hard,) = torch.autograd.grad(mask[:, :3].sum(), logits)
    (soft,) = torch.autograd.grad(torch.softmax(logits, -1)[:, :3, 1].sum(), logits)
    torch.testing.assert_close(hard, soft)

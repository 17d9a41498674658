"""Soft modality scores and the losses of SMoES: against numbers made from the paper's formulas, and by their bounds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vtc.errors import InputError
from vtc.experts.modality import (
    GaussianScores,
    Mass,
    bin_mutual_information,
    intra_bin_balance_loss,
    load_balance_loss,
    modality_bin_joint,
    modality_labels,
    propagate_scores,
)

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "smoes_selfmade.npz")
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def golden(name: str) -> torch.Tensor:
    value = torch.from_numpy(GOLDEN[name])
    return value.double() if value.is_floating_point() else value


def golden_scores(kind: str) -> torch.Tensor:
    if kind == "hard":
        return modality_labels(golden("visual_label").bool()).double()
    return golden("score_attention")[-1] if kind == "attention" else golden("score_gaussian")


@pytest.mark.parametrize("heads", [True, False])
def test_attention_hands_scores_on(heads: bool) -> None:
    scores = golden_scores("hard")
    attention = golden("attn") if heads else golden("attn").mean(dim=2)
    assert torch.equal(scores, golden("score_attention")[0])
    for layer in range(3):
        scores = propagate_scores(attention[layer], golden("attn_out")[layer], golden("hidden")[layer], scores)
        torch.testing.assert_close(scores, golden("score_attention")[layer + 1], **EXACT)


def test_gaussian_scores() -> None:
    estimator = GaussianScores(1, 16).double()
    estimator.mean[0], estimator.variance[0] = golden("gauss_mean"), golden("gauss_var")
    torch.testing.assert_close(estimator.scores(0, golden("hidden")[0]), golden("score_gaussian"), **EXACT)


def test_the_moving_average_is_of_a_mixed_population() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1, 40, 3, generator=generator) + shift for shift in (0.0, 2.0))
    visual = torch.zeros(1, 40, dtype=torch.bool)
    estimator = GaussianScores(2, 3, decay=0.5)
    estimator.update(1, first, visual)
    torch.testing.assert_close(estimator.mean[1, 0], first[0].mean(dim=0))
    estimator.update(1, second, visual)
    both = torch.cat([first, second], dim=1)[0]
    torch.testing.assert_close(estimator.mean[1, 0], both.mean(dim=0))
    torch.testing.assert_close(estimator.variance[1, 0], both.var(dim=0, unbiased=False))
    assert estimator.seen.tolist() == [[False, False], [True, False]]


def test_padding_does_not_move_the_average() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [99.0]]])
    estimator = GaussianScores(1, 1)
    estimator.update(0, hidden, torch.zeros(1, 3), valid=torch.tensor([[1, 1, 0]]))
    assert estimator.mean[0, 0].item() == 2


@pytest.mark.parametrize("kind", ["attention", "gaussian", "hard"])
def test_mutual_information_and_its_gradient(kind: str) -> None:
    logits = golden("router_logits").requires_grad_()
    scores, bins = golden_scores(kind), golden("bin_of_expert")
    probabilities = logits.softmax(dim=-1)
    torch.testing.assert_close(modality_bin_joint(scores, probabilities, bins), golden(f"{kind}_P"), **EXACT)
    information = bin_mutual_information(scores, probabilities, bins)
    torch.testing.assert_close(information, golden(f"{kind}_MI_nats"), **EXACT)
    (-information.mean()).backward()
    torch.testing.assert_close(logits.grad, golden(f"{kind}_grad_router_logits"), **EXACT)


@pytest.mark.parametrize("mass", ["equal", "tokens"])
def test_information_is_none_or_all(mass: Mass) -> None:
    scores = modality_labels(torch.tensor([[0, 0, 1, 1]]))
    bins = torch.tensor([0, 1, 0, 1])
    same = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(1, 4, 4)
    assert bin_mutual_information(scores, same, bins, mass).item() == pytest.approx(0, abs=1e-6)
    split = torch.tensor([[[0.5, 0, 0.5, 0]] * 2 + [[0, 0.3, 0, 0.7]] * 2], requires_grad=True)
    information = bin_mutual_information(scores, split, bins, mass)
    assert information.item() == pytest.approx(math.log(2), rel=1e-6)
    information.sum().backward()
    assert split.grad is not None
    assert split.grad.isfinite().all()


def test_modalities_of_unequal_length_differ_by_mass() -> None:
    """Nine visual tokens for one of text: a perfect split is log 2 where both count alike, less by tokens."""
    scores = modality_labels(torch.tensor([[0] + [1] * 9]))
    split = torch.tensor([[[1.0, 0]] + [[0, 1.0]] * 9])
    bins = torch.tensor([0, 1])
    assert bin_mutual_information(scores, split, bins).item() == pytest.approx(math.log(2), rel=1e-6)
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert bin_mutual_information(scores, split, bins, "tokens").item() == pytest.approx(entropy, rel=1e-6)


def test_only_the_bin_matters() -> None:
    scores, bins = golden_scores("hard"), golden("bin_of_expert")
    probabilities = golden("router_logits").softmax(dim=-1)
    before = bin_mutual_information(scores, probabilities, bins)
    inside = torch.arange(16)
    first, second = (bins == 0).nonzero().flatten()[:2]
    inside[first], inside[second] = second, first
    torch.testing.assert_close(bin_mutual_information(scores, probabilities[..., inside], bins), before)
    across = torch.arange(16)
    other = int((bins == 3).nonzero()[0])
    across[first], across[other] = other, first
    assert not torch.allclose(bin_mutual_information(scores, probabilities[..., across], bins), before)


def test_text_alone_tells_nothing() -> None:
    probabilities = torch.rand(1, 5, 4).softmax(dim=-1)
    scores = modality_labels(torch.zeros(1, 5))
    information = bin_mutual_information(scores, probabilities, torch.tensor([0, 0, 1, 1]))
    assert information.item() == pytest.approx(0, abs=1e-6)


def test_the_balance_loss_as_printed_is_the_plain_one() -> None:
    plain = load_balance_loss(golden("router_logits").softmax(dim=-1), golden("selected"))
    torch.testing.assert_close(4 * plain, golden("balance_loss_intra_bin"), **EXACT)


def test_balance_inside_a_bin_does_not_ask_how_much_the_bin_gets() -> None:
    bins = torch.tensor([0, 0, 1, 1])
    lopsided = torch.tensor([[0.45, 0.45, 0.05, 0.05]])
    chosen = torch.tensor([[0], [1], [0], [1], [2], [3]])
    assert intra_bin_balance_loss(lopsided, chosen, bins).item() == pytest.approx(1)
    assert load_balance_loss(lopsided, chosen).item() > 1
    uneven = torch.tensor([[0.8, 0.1, 0.05, 0.05]])
    assert intra_bin_balance_loss(uneven, torch.tensor([[0], [0], [2], [3]]), bins).item() > 1.3
    with pytest.raises(InputError, match="3 experts have a bin, but the router has 4"):
        intra_bin_balance_loss(uneven, chosen, bins[:3])

"""How visual each token is, and losses that let experts share the work by modality (PyTorch).

A token's soft score says how much of it is text and how much visual. Routing is then pushed to tell, by the *bin* of
an expert, which modality a token is; which expert inside the bin stays free. Based on SMoES (arXiv 2604.23996), of
which no code is published: constants of the Gaussian estimator other than decay and temperature are ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vtc.errors import InputError
from vtc.experts.statistics import MODALITIES

Mass = Literal["equal", "tokens"]
"""Whether both modalities count alike, or each by its tokens."""
TEMPERATURE = 0.5
"""Of the Gaussian scores, a multiple of the hidden width."""
DECAY = 0.99
_SMALLEST_VARIANCE = 1e-6


def modality_labels(visual: Tensor) -> Tensor:
    """Scores (B, T, 2) of tokens that are text or visual (B, T): what attention propagation starts from."""
    return torch.stack([~visual.bool(), visual.bool()], dim=-1).to(torch.get_default_dtype())


def propagate_scores(attention: Tensor, attention_output: Tensor, hidden: Tensor, scores: Tensor) -> Tensor:
    """Scores after one decoder layer, of those before it.

    A token takes over the scores of what it attends to, by the share that attention has in the residual sum.

    Parameters
    ----------
    attention : Tensor of shape (B, H, T, T) or (B, T, T)
        Probabilities of each head, or their mean.
    attention_output : Tensor of shape (B, T, D)
        What attention adds to the residual stream.
    hidden : Tensor of shape (B, T, D)
        The residual stream before it.
    scores : Tensor of shape (B, T, 2)

    Returns
    -------
    Tensor of shape (B, T, 2)
    """
    mean = attention.mean(dim=1) if attention.dim() == 4 else attention
    attended = mean.to(scores) @ scores
    added = attention_output.norm(dim=-1, keepdim=True).to(scores)
    stayed = hidden.norm(dim=-1, keepdim=True).to(scores)
    total = (added + stayed).clamp(min=torch.finfo(scores.dtype).tiny)
    mixed: Tensor = (added * attended + stayed * scores) / total
    return mixed


class GaussianScores(nn.Module):
    """Scores by one diagonal Gaussian per layer and modality, kept as moving averages.

    Parameters
    ----------
    layers : int
    width : int
        Of the hidden states, D.
    decay : float
        Share of the old mean and variance that stays at an update. The first update sets them.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, layers: int, width: int, decay: float = DECAY) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(layers, len(MODALITIES), width))
        self.register_buffer("variance", torch.ones(layers, len(MODALITIES), width))
        self.register_buffer("seen", torch.zeros(layers, len(MODALITIES), dtype=torch.bool))

    @torch.no_grad()
    def update(self, layer: int, hidden: Tensor, visual: Tensor, valid: Tensor | None = None) -> None:
        """Take in a batch: hidden states (B, T, D), which tokens are visual (B, T), which are no padding (B, T).

        Old and new are mixed as two populations: the variance has the distance between their means too.
        """
        valid = torch.ones_like(visual, dtype=torch.bool) if valid is None else valid.bool()
        for modality, members in enumerate([valid & ~visual.bool(), valid & visual.bool()]):
            states = hidden[members].to(self.mean)
            if not len(states):
                continue
            mean, variance = states.mean(dim=0), states.var(dim=0, unbiased=False)
            stays = self.decay if self.seen[layer, modality] else 0.0
            moved = mean - self.mean[layer, modality]
            self.mean[layer, modality] += (1 - stays) * moved
            mixed = stays * self.variance[layer, modality] + (1 - stays) * variance
            self.variance[layer, modality] = mixed + stays * (1 - stays) * moved.square()
            self.seen[layer, modality] = True

    def scores(self, layer: int, hidden: Tensor) -> Tensor:
        """Scores (B, T, 2) of hidden states (B, T, D): softmax of log-likelihood over half the width."""
        variance = self.variance[layer].clamp(min=_SMALLEST_VARIANCE)
        states = hidden.to(self.mean).unsqueeze(-2)
        log_likelihood = -0.5 * ((states - self.mean[layer]).square() / variance + variance.log()).sum(dim=-1)
        return torch.softmax(log_likelihood / (TEMPERATURE * hidden.shape[-1]), dim=-1)


def modality_bin_joint(scores: Tensor, probabilities: Tensor, bins: Tensor, mass: Mass = "equal") -> Tensor:
    """Joint distribution (B, 2, bins) of a token's modality and of the bin that the router sends it to.

    Parameters
    ----------
    scores : Tensor of shape (B, T, 2)
        Zero for padding. No gradient goes through them.
    probabilities : Tensor of shape (B, T, E)
        The router's softmax over all experts.
    bins : Tensor of shape (E,), int64
        Bin of each expert, from 0.
    mass : {"equal", "tokens"}
        ``equal``: each modality has half of the mass, as the paper prints it. ``tokens``: as much as its tokens.
    """
    members = _members(bins, probabilities)
    weights = scores.detach().to(probabilities)
    joint = torch.einsum("btm,btk->bmk", weights, probabilities @ (members / members.sum(dim=0).clamp(min=1)))
    tiny = torch.finfo(joint.dtype).tiny
    if mass == "equal":
        joint = joint / weights.sum(dim=1).unsqueeze(-1).clamp(min=tiny)
    return joint / joint.sum(dim=(1, 2), keepdim=True).clamp(min=tiny)


def bin_mutual_information(scores: Tensor, probabilities: Tensor, bins: Tensor, mass: Mass = "equal") -> Tensor:
    """Mutual information (B,), in nats, of modality and bin; parameters of :func:`modality_bin_joint`.

    From 0, where the bin says nothing of the modality, to log 2. Its negative mean is SMoES' loss.
    """
    joint = modality_bin_joint(scores, probabilities, bins, mass)
    tiny = torch.finfo(joint.dtype).tiny
    independent = joint.sum(dim=2, keepdim=True) * joint.sum(dim=1, keepdim=True)
    return (joint * (joint.clamp(min=tiny).log() - independent.clamp(min=tiny).log())).sum(dim=(1, 2))


def load_balance_loss(probabilities: Tensor, selected: Tensor) -> Tensor:
    """E times the sum of an expert's share of choices and its mean probability: 1 where all experts work alike.

    Parameters
    ----------
    probabilities : Tensor of shape (..., E)
        The router's softmax, without padding.
    selected : Tensor of shape (..., k), int64
        Experts chosen.

    Notes
    -----
    Based on Switch Transformers (arXiv 2101.03961).
    """
    experts = probabilities.shape[-1]
    share = torch.bincount(selected.flatten(), minlength=experts).to(probabilities) / selected.numel()
    return experts * (share * probabilities.reshape(-1, experts).mean(dim=0)).sum()


def intra_bin_balance_loss(probabilities: Tensor, selected: Tensor, bins: Tensor) -> Tensor:
    """Mean over bins of the balance loss inside a bin: 1 where the experts of each bin work alike.

    Shares are of the bin's own choices and probability, so that nothing is said of how much work a bin gets. The paper
    prints ``sum over bins of N_B * sum of f_e P_e`` without saying what f and P are shares of; with shares of all
    choices and bins of equal size that is `load_balance_loss` times N_B, and does push against bins of one modality.

    Parameters
    ----------
    probabilities, selected
        As in :func:`load_balance_loss`.
    bins : Tensor of shape (E,), int64
    """
    experts = probabilities.shape[-1]
    members = _members(bins, probabilities)
    tiny = torch.finfo(probabilities.dtype).tiny

    def within(values: Tensor) -> Tensor:
        return values / (members @ (values @ members)).clamp(min=tiny)

    share = within(torch.bincount(selected.flatten(), minlength=experts).to(probabilities))
    mean = within(probabilities.reshape(-1, experts).mean(dim=0))
    return ((share * mean) @ members * members.sum(dim=0)).mean()


def _members(bins: Tensor, probabilities: Tensor) -> Tensor:
    """Which bin (E, bins) each expert is of."""
    if bins.shape != probabilities.shape[-1:]:
        raise InputError(f"{len(bins)} experts have a bin, but the router has {probabilities.shape[-1]}")
    return nn.functional.one_hot(bins).to(probabilities)

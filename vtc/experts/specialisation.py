"""How far experts belong to one modality."""

from __future__ import annotations

import numpy as np

from vtc.errors import InputError
from vtc.experts.statistics import VISUAL, Floats, Numbers


def visual_share(chosen: Floats, *, equal_mass: bool = False) -> Floats:
    """Share of an expert's choices that visual tokens made.

    Parameters
    ----------
    chosen : array of shape (..., 2, E)
        Choices by text and by visual tokens.
    equal_mass : bool
        Count choices as shares of the modality's own, so that an expert which both use alike has 0.5 however many
        visual tokens there are. The order of the experts is the same.

    Returns
    -------
    array of shape (..., E)
        0.5 for an expert that no token chose.
    """
    counts = _shares(chosen) if equal_mass else np.asarray(chosen, np.float64)
    total = counts.sum(axis=-2)
    return np.where(total > 0, counts[..., VISUAL, :] / np.where(total > 0, total, 1), 0.5)


def _shares(chosen: Floats) -> Floats:
    total = chosen.sum(axis=-1, keepdims=True)
    return np.asarray(chosen / np.where(total > 0, total, 1))


def modality_bins(share: Floats, bins: int) -> Numbers:
    """Bin of each expert: experts in ascending order of a share, cut into bins of equally many.

    Of equal shares the lowest index comes first. Based on SMoES (arXiv 2604.23996).

    Parameters
    ----------
    share : array of shape (..., E)
    bins : int
        Divides E.

    Returns
    -------
    array of shape (..., E), int64
        From 0; the last bin is the most visual one.
    """
    experts = share.shape[-1]
    if bins < 1 or experts % bins:
        raise InputError(f"{experts} experts cannot be cut into {bins} bins: {bins} does not divide {experts}")
    rank = np.argsort(np.argsort(share, axis=-1, kind="stable"), axis=-1, kind="stable")
    return np.asarray(rank // (experts // bins), np.int64)


def specialisation_index(chosen: Floats, bins: Numbers | None = None, *, equal_mass: bool = True) -> Floats:
    """How much the choice of an expert, or of its bin, tells of the modality: 0 nothing, 1 all that it can.

    Mutual information of modality and expert (or bin) over the smaller of their entropies. The paper of SMoES
    (arXiv 2604.23996) reports a specialisation index without its formula, so that values are not comparable with its.

    Parameters
    ----------
    chosen : array of shape (L, 2, E)
        Choices by text and by visual tokens.
    bins : array of shape (L, E), int64, or None
        Bin of each expert; None asks of experts.
    equal_mass : bool
        Both modalities count alike; otherwise by their choices.

    Returns
    -------
    array of shape (L,)
        0 where only one modality, or only one expert, was seen.
    """
    counts = _shares(chosen) if equal_mass else np.asarray(chosen, np.float64)
    if bins is not None:
        members = bins[:, :, None] == np.arange(bins.max() + 1)
        counts = counts @ members
    joint = counts / np.maximum(counts.sum(axis=(1, 2), keepdims=True), np.finfo(float).tiny)
    modality, expert = _entropy(joint.sum(axis=2)), _entropy(joint.sum(axis=1))
    information = modality + expert - _entropy(joint.reshape(len(joint), -1))
    least = np.minimum(modality, expert)
    return np.where(least > 1e-12, np.clip(information / np.maximum(least, 1e-12), 0, 1), 0.0)


def _entropy(probability: Floats) -> Floats:
    """Nats (L,) of distributions (L, n)."""
    logs = np.log(np.where(probability > 0, probability, 1))
    return np.asarray(-(probability * logs).sum(axis=1))

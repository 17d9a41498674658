"""Which experts of a layer matter: scores from sums of their use, and the sets to keep.

Scores are of one modality or of both. A calibration without images would call the visual experts useless, and one
modality with nine tenths of the tokens speaks for both: `modality_aware` gives each modality its say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from vtc.errors import InputError
from vtc.experts.statistics import MODALITIES, TEXT, VISUAL, ExpertUse, Floats, Numbers

Rule = Literal["frequency", "weighted_frequency", "ean_sum", "ean_mean", "weighted_ean_sum", "reap"]
Of = Literal["text", "visual", "both"]
RULES: tuple[Rule, ...] = get_args(Rule)


def expert_scores(use: ExpertUse, rule: Rule, of: Of = "both") -> Floats:
    """Score of each expert by the tokens of one modality or both; higher matters more.

    Parameters
    ----------
    use : ExpertUse
    rule : str
        ``frequency``: tokens that chose it. ``weighted_frequency``: sum of their router weights. ``ean_sum``,
        ``ean_mean``: sum and mean of the norm of its output over them. ``weighted_ean_sum``: sum of weight times norm.
        ``reap``: its mean.
    of : {"text", "visual", "both"}

    Returns
    -------
    array of shape (L, E)
        0 for an expert that no such token chose.

    Notes
    -----
    Based on REAP (arXiv 2510.13999), whose code has the other rules too. Weights are as the model mixes with them.
    """
    wanted = [TEXT, VISUAL] if of == "both" else [MODALITIES.index(of)]

    def total(sums: Floats) -> Floats:
        return np.asarray(sums[:, wanted].sum(axis=1))

    rules: dict[Rule, Callable[[], Floats]] = {
        "frequency": lambda: total(use.chosen),
        "weighted_frequency": lambda: total(use.weight),
        "ean_sum": lambda: total(use.norm),
        "ean_mean": lambda: total(use.norm) / np.maximum(total(use.chosen), 1),
        "weighted_ean_sum": lambda: total(use.weighted_norm),
        "reap": lambda: total(use.weighted_norm) / np.maximum(total(use.chosen), 1),
    }
    if rule not in rules:
        raise InputError(f"no rule '{rule}' for the importance of experts; there are {', '.join(RULES)}")
    return rules[rule]()


def modality_aware(use: ExpertUse, rule: Rule) -> Floats:
    """Score by which an expert is kept if either modality needs it.

    Each modality ranks the experts that its tokens chose. Experts come in the order of the better of their two ranks;
    of two that tie, first the one whose other rank is better, then the lower index. The first 2n experts thus hold the
    n best of each modality, whatever the modalities' tokens and norms.

    Returns
    -------
    array of shape (L, E)
        Higher matters more.
    """
    ranks = np.stack([_ranks(expert_scores(use, rule, "text")), _ranks(expert_scores(use, rule, "visual"))])
    return np.asarray(-(ranks.min(axis=0) * (use.experts + 1) + ranks.max(axis=0)), np.float64)


def _ranks(scores: Floats) -> Numbers:
    """Ranks from 0 for the highest; E for a score of 0, which is of an expert that no token chose."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    return np.where(scores > 0, ranks, scores.shape[1])


def keep_sets(scores: Floats, keep: int) -> Numbers:
    """The `keep` experts of each layer with the highest scores; of equal ones the lowest index wins.

    Returns
    -------
    array of shape (L, keep), int64
        Ascending.
    """
    experts = scores.shape[1]
    if not 1 <= keep <= experts:
        raise InputError(f"cannot keep {keep} of {experts} experts; keep 1 to {experts}")
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :keep], axis=1)

"""Thresholds below which a chosen expert is skipped, one for text and one for visual tokens.

What a token's chosen expert counts for is the layer's importance for the token's modality times the router's weight.
Skipping depends on the token, so that a graph that runs every expert saves nothing by it. Based on MoDES
(arXiv 2511.15690).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from vtc.errors import InputError
from vtc.experts.statistics import MODALITIES, Floats, Numbers


@dataclass(frozen=True)
class SkipThresholds:
    """Thresholds for text and visual tokens, what they lose, the share of expert calls they skip, and tries it took."""

    text: float
    visual: float
    loss: float
    skipped: float
    evaluations: int


class Skipped(NamedTuple):
    """Shares of expert calls that are skipped, of text, of visual tokens and of all; None where there are no such."""

    text: float | None
    visual: float | None
    all: float


@dataclass(frozen=True)
class SkippingReport:
    """What skipping loses.

    Attributes
    ----------
    share : float
        Share of expert calls that were to be skipped.
    thresholds : SkipThresholds
        Found on half of the prompts.
    importance : array of shape (2, L)
        Of each layer for the tokens of a modality; they sum to 1 for each.
    loss : float
        On the other half: KL divergence of the next token's distribution from the whole model's, mean over prompts, in
        nats.
    skipped : Skipped
        On the other half.
    """

    share: float
    thresholds: SkipThresholds
    importance: Floats
    loss: float
    skipped: Skipped

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "kind": "skipping",
            "share": self.share,
            "thresholds": asdict(self.thresholds),
            "importance": dict(zip(MODALITIES, self.importance.tolist(), strict=True)),
            "loss": self.loss,
            "skipped": self.skipped._asdict(),
        }


def skipped_share(
    weight: Floats, modality: Numbers, layer_importance: Floats, thresholds: tuple[float, float]
) -> float:
    """Share of expert calls that two thresholds skip.

    Parameters
    ----------
    weight : array of shape (L, T, k)
        Router weights of the chosen experts, which sum to 1 for each token.
    modality : array of shape (T,), int64
        Index into `MODALITIES`.
    layer_importance : array of shape (2, L)
        Of each layer for the tokens of a modality.
    thresholds : (float, float)
        For text and for visual tokens.
    """
    counts = layer_importance.T[:, modality][:, :, None] * weight
    return float((counts < np.asarray(thresholds)[modality][None, :, None]).mean())


def skip_thresholds(
    evaluate: Callable[[float, float], tuple[float, float]], text: Floats, visual: Floats, target: float
) -> SkipThresholds:
    """Thresholds of the least loss among those that skip at least a share of expert calls.

    Loss and share both rise with either threshold, so that the best pair lies on the frontier where the share is just
    reached; the frontier is walked in about n + m of the n * m evaluations.

    Parameters
    ----------
    evaluate : callable
        Loss and skipped share at a threshold for text and one for visual tokens.
    text, visual : arrays of shape (n,), (m,)
        Thresholds to choose from, ascending.
    target : float
        Share to be skipped.

    Raises
    ------
    InputError
        If the highest thresholds do not skip as much.
    """
    known: dict[tuple[int, int], tuple[float, float]] = {}

    def at(i: int, j: int) -> tuple[float, float]:
        if (i, j) not in known:
            known[i, j] = evaluate(float(text[i]), float(visual[j]))
        return known[i, j]

    most = at(len(text) - 1, len(visual) - 1)[1]
    if most < target:
        raise InputError(f"the highest thresholds skip {most:.1%} of the expert calls, not {target:.1%}; raise them")
    best: tuple[float, int, int] | None = None
    j = len(visual)  # lowest visual threshold that is known to skip enough
    for i in range(len(text)):
        while j > 0 and at(i, j - 1)[1] >= target:
            j -= 1
        if j < len(visual) and (best is None or at(i, j)[0] < best[0]):
            best = (at(i, j)[0], i, j)
    assert best is not None  # the highest thresholds are on the frontier or above it
    loss, i, j = best
    return SkipThresholds(float(text[i]), float(visual[j]), loss, at(i, j)[1], len(known))

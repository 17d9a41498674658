"""How closely a model follows the original, token by token, and whether it answers the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtc.data.datasets import Item
from vtc.data.fidelity import divergence
from vtc.evaluate import stats
from vtc.evaluate.answers import Answers, Contestant, Found
from vtc.evaluate.asking import Asking
from vtc.evaluate.metrics import same_answer
from vtc.evaluate.predictor import Logits

Floats = NDArray[np.float64]
_ANY_TOKEN = 0
"""Stands after a finished answer: the distribution before it is wanted, the token itself is never read."""


@dataclass(frozen=True)
class Fidelity:
    """How closely a model follows the original.

    Attributes
    ----------
    kld, same_top : arrays of shape (tokens,)
        One entry per distribution compared; see :class:`vtc.data.fidelity.Divergence`.
    token_images : tuple of tokens str
        The image of each entry.
    same_answer : array of shape (n,), bool
        Whether the two normalised answers are equal.
    """

    kld: Floats
    same_top: NDArray[np.bool_]
    token_images: tuple[str, ...]
    same_answer: NDArray[np.bool_]

    def to_dict(self, seed: int) -> dict[str, Any]:
        """The figures as JSON, with intervals by image."""
        return {
            "top1_agreement": float(self.same_top.mean()),
            "top1_ci95": stats.listed(self.top1_interval(seed)),
            "kld_mean": float(self.kld.mean()),
            "kld_ci95": stats.listed(self.kld_interval(seed)),
            "kld_median": float(np.median(self.kld)),
            "kld_p99": float(np.quantile(self.kld, 0.99)),
            "answer_agreement": float(self.same_answer.mean()),
            "tokens": len(self.kld),
        }

    def top1_interval(self, seed: int) -> stats.Interval | None:
        """Interval of top-1 agreement."""
        return stats.mean_interval(self.same_top, self.token_images, seed)

    def kld_interval(self, seed: int) -> stats.Interval | None:
        """Interval of the mean KL divergence."""
        return stats.mean_interval(self.kld, self.token_images, seed)


def follow_all(
    original: Contestant, models: Sequence[Contestant], items: Sequence[Item], answers: Found, asking: Asking
) -> list[Found]:
    """Compare next-token distributions of models along the original's answers.

    Logits are reduced batch by batch: whole vocabularies for every item would not fit in memory. The original runs once
    for all models.

    Returns
    -------
    list of mapping
        Of each model, ``kld`` and ``same_top`` of each item, see :class:`vtc.data.fidelity.Divergence`.
    """

    def run(batch: Sequence[Item]) -> list[dict[str, Any]]:
        images = [[item.load()] for item in batch]
        forced = [[*answers[item.id]["token_ids"], _ANY_TOKEN] for item in batch]

        def scores(one: Contestant) -> Sequence[Logits]:
            return one.predictor.score(images, [one.chat(item.question) for item in batch], forced)

        expected = scores(original)
        moved = [[divergence(p, q) for p, q in zip(expected, scores(one), strict=True)] for one in models]
        return [
            {"models": [{"kld": one.kld.tolist(), "same_top": one.same_top.tolist()} for one in of_item]}
            for of_item in zip(*moved, strict=True)
        ]

    def usable(note: Mapping[str, Any]) -> bool:
        found = note.get("models")
        return isinstance(found, list) and len(found) == len(models) and all(map(whole, found))

    def whole(note: object) -> bool:
        if not isinstance(note, dict):
            return False
        kld, same_top = note.get("kld"), note.get("same_top")
        if not isinstance(kld, list) or not isinstance(same_top, list) or not len(kld) == len(same_top) > 0:
            return False
        return all(isinstance(value, float) for value in kld) and all(isinstance(same, bool) for same in same_top)

    label = f"{models[0].name}: fidelity" if len(models) == 1 else "fidelity at every budget"
    found = asking.all(items, run, usable, "fidelity", label) if models else {}
    return [{item: note["models"][number] for item, note in found.items()} for number in range(len(models))]


def fidelity_of(items: Sequence[Item], found: Found, original: Answers, compressed: Answers) -> Fidelity:
    """Put together what was found of items, which both models answered."""
    pairs = zip(original.texts, compressed.texts, strict=True)
    return Fidelity(
        np.array([value for item in items for value in found[item.id]["kld"]], dtype=np.float64),
        np.array([same for item in items for same in found[item.id]["same_top"]], dtype=np.bool_),
        tuple(item.image_id for item in items for _ in found[item.id]["kld"]),
        np.array([same_answer(a, b) for a, b in pairs]),
    )

"""Judges a compressed model against the original on the same questions.

Protocol: every model answers the same questions greedily, each through its own prompt template. Answers are
scored item by item, and everything that compares two models is paired. Intervals come from 10,000 bootstrap
resamples of images with a fixed seed. Fidelity is measured by teacher forcing: both models read the
*original's* answer, and their next-token distributions are compared before each of its tokens and once after
the last, where it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.data.datasets import Dataset, Item
from vtc.data.fidelity import divergence
from vtc.evaluate import stats
from vtc.evaluate.evidence import Locator, measure_evidence
from vtc.evaluate.gate import Check, at_least, at_most, overall, retention_check
from vtc.evaluate.metrics import answer_score, normalise
from vtc.evaluate.predictor import Predictor
from vtc.progress import Report, silent

Floats = NDArray[np.float64]
_ANY_TOKEN = 0
"""Stands after a finished answer: the distribution before it is wanted, the token itself is never read."""


@dataclass(frozen=True)
class Contestant:
    """A model under a name, with the prompt template it answers through.

    Attributes
    ----------
    name : str
    predictor : Predictor
    chat : callable
        Turns a question into a whole prompt with one image placeholder.
    locator : Locator or None
        Where its kept tokens lie; None where they are not places on the original's grid.
    layer_average : float or None
        Visual tokens of an image, mean over the original's decoder layers; None: `image_tokens` in every layer.
    """

    name: str
    predictor: Predictor
    chat: Callable[[str], str]
    locator: Locator | None = None
    layer_average: float | None = None


@dataclass(frozen=True)
class Answers:
    """What one model answered to n items.

    Attributes
    ----------
    scores : array of shape (n,)
        Between 0 and 1.
    texts : tuple of n str
    token_ids : tuple of n tuples of int
        Without the end token.
    """

    scores: Floats
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]

    @property
    def accuracy(self) -> float:
        """Mean score."""
        return float(self.scores.mean())


@dataclass(frozen=True)
class Thresholds:
    """What the gate asks for; None asks nothing."""

    min_retention: float = 0.95
    min_top1: float | None = None
    max_kld: float | None = None


@dataclass(frozen=True)
class Effort:
    """How the questions are put: B at a time, with answers of at most so many tokens."""

    batch_size: int = 16
    max_new_tokens: int = 32


def answer_all(
    contestant: Contestant, items: Sequence[Item], effort: Effort = Effort(), progress: Report = silent
) -> Answers:
    """Ask a model every question.

    Parameters
    ----------
    contestant : Contestant
    items : sequence of n Item
    effort : Effort
    progress : callable

    Returns
    -------
    Answers
    """
    texts: list[str] = []
    token_ids: list[tuple[int, ...]] = []
    for _, images, prompts in _batches(contestant, items, effort.batch_size):
        for generation in contestant.predictor.generate(images, prompts, effort.max_new_tokens):
            texts.append(generation.text)
            token_ids.append(tuple(generation.token_ids))
        progress(f"{contestant.name}: answers", len(texts), len(items))
    scores = [answer_score(text, item.answers) for text, item in zip(texts, items, strict=True)]
    return Answers(np.asarray(scores, dtype=np.float64), tuple(texts), tuple(token_ids))


def _batches(
    contestant: Contestant, items: Sequence[Item], size: int
) -> Iterator[tuple[Sequence[Item], list[list[Image.Image]], list[str]]]:
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        yield batch, [[item.load()] for item in batch], [contestant.chat(item.question) for item in batch]


def compare_accuracy(items: Sequence[Item], scores: Floats, base: Floats, seed: int) -> dict[str, Any]:
    """Paired figures of a model (`scores`) and the original (`base`) on the same n items.

    Returns
    -------
    dict
        ``accuracy`` and ``base`` with their own intervals, ``retention`` (accuracy / base; None where the
        base is 0) with its paired interval ``ci95``, ``n``, ``images``, and how many items the model ``lost``
        and ``gained``.
    """
    groups = [item.image_id for item in items]
    return {
        "accuracy": float(scores.mean()),
        "base": float(base.mean()),
        "retention": stats.ratio(scores, base),
        "ci95": _listed(stats.ratio_interval(scores, base, groups, seed)),
        "n": len(items),
        "images": len(set(groups)),
        "lost": int(np.sum(scores < base)),
        "gained": int(np.sum(scores > base)),
        "accuracy_ci95": _listed(stats.mean_interval(scores, groups, seed)),
    }


def compare_capabilities(items: Sequence[Item], scores: Floats, base: Floats, seed: int) -> dict[str, Any]:
    """:func:`compare_accuracy` over all items, and for each category under ``by_capability``."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.category, []).append(place)
    by_capability = {
        category: compare_accuracy([items[place] for place in chosen], scores[chosen], base[chosen], seed)
        for category, chosen in places.items()
    }
    return compare_accuracy(items, scores, base, seed) | {"by_capability": by_capability}


def _listed(interval: stats.Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


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
            "top1_ci95": _listed(self.top1_interval(seed)),
            "kld_mean": float(self.kld.mean()),
            "kld_ci95": _listed(self.kld_interval(seed)),
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


def measure_fidelity(
    original: Contestant,
    compressed: Contestant,
    items: Sequence[Item],
    original_answers: Answers,
    compressed_answers: Answers,
    effort: Effort = Effort(),
    progress: Report = silent,
) -> Fidelity:
    """Compare next-token distributions along the original's answers.

    Logits are reduced batch by batch: whole vocabularies for every item would not fit in memory.
    """
    kld: list[Floats] = []
    same_top: list[NDArray[np.bool_]] = []
    token_images: list[str] = []
    done = 0
    batches = zip(
        _batches(original, items, effort.batch_size),
        _batches(compressed, items, effort.batch_size),
        strict=True,
    )
    for (batch, images, prompts), (_, _, compressed_prompts) in batches:
        answers = original_answers.token_ids[done : done + len(batch)]
        forced = [[*ids, _ANY_TOKEN] for ids in answers]
        expected = original.predictor.score(images, prompts, forced)
        found = compressed.predictor.score(images, compressed_prompts, forced)
        for item, p, q in zip(batch, expected, found, strict=True):
            moved = divergence(p, q)
            kld.append(moved.kld)
            same_top.append(moved.same_top)
            token_images += [item.image_id] * len(moved.kld)
        done += len(batch)
        progress(f"{compressed.name}: fidelity", done, len(items))
    pairs = zip(original_answers.texts, compressed_answers.texts, strict=True)
    same_answer = np.array([normalise(a) == normalise(b) for a, b in pairs])
    return Fidelity(np.concatenate(kld), np.concatenate(same_top), tuple(token_images), same_answer)


def gate_checks(result: Mapping[str, Any], fidelity: Fidelity, limits: Thresholds, seed: int) -> list[Check]:
    """The checks that the limits ask for."""
    images = int(result["images"])
    interval = result["ci95"]
    checks = [retention_check(result["retention"], tuple(interval) if interval else None, limits.min_retention, images)]
    if limits.min_top1 is not None:
        found = float(fidelity.same_top.mean())
        checks.append(at_least("top1_agreement", found, fidelity.top1_interval(seed), limits.min_top1, images))
    if limits.max_kld is not None:
        found = float(fidelity.kld.mean())
        checks.append(at_most("kld_mean", found, fidelity.kld_interval(seed), limits.max_kld, images))
    return checks


def validate(
    original: Contestant,
    compressed: Contestant | None,
    baselines: Sequence[Contestant],
    dataset: Dataset,
    *,
    limits: Thresholds = Thresholds(),
    seed: int = 0,
    effort: Effort = Effort(),
    progress: Report = silent,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Measure and judge.

    Parameters
    ----------
    original : Contestant
    compressed : Contestant or None
        None measures the original alone; the gate then has no checks.
    baselines : sequence of Contestant
    dataset : Dataset
    limits : Thresholds
    seed : int
        Of the bootstrap.
    effort : Effort
    progress : callable
    left_out : mapping
        Baselines that were asked for and cannot be, and why; noted in the report.

    Returns
    -------
    dict
        The report, ready for JSON: ``kind``, ``results``, ``fidelity``, ``baselines`` and those ``left_out``, ``gate``,
        and what it takes to read or repeat them (``original``, ``data``, ``protocol``).
    """
    items = dataset.items
    base = answer_all(original, items, effort, progress)
    judged = original if compressed is None else compressed
    answers = base if compressed is None else answer_all(compressed, items, effort, progress)
    result = compare_capabilities(items, answers.scores, base.scores, seed)
    fidelity: dict[str, Any] = {}
    checks: list[Check] = []
    if compressed is not None:
        measured = measure_fidelity(original, compressed, items, base, answers, effort, progress)
        fidelity = measured.to_dict(seed)
        checks = gate_checks(result, measured, limits, seed)
    return {
        "kind": "validate",
        "results": {
            judged.name: result
            | {
                "visual_tokens": judged.predictor.image_tokens,
                "layer_average": judged.layer_average,
                "evidence": _evidence(compressed, items, answers, base),
            }
        },
        "fidelity": fidelity,
        "baselines": {
            rival.name: _baseline(rival, items, answers.scores, base.scores, seed, effort, progress)
            for rival in baselines
        },
        "left_out": dict(left_out),
        "gate": {"status": overall(checks), "checks": [check.to_dict() for check in checks]},
        "original": _original(original, items, base),
        "data": {
            "name": dataset.name,
            "items": len(items),
            "images": dataset.images,
            "sha256": dataset.sha256,
            "chance": _chance(items),
        },
        "protocol": {
            "seed": seed,
            "resamples": stats.RESAMPLES,
            "level": stats.LEVEL,
            "resampled_unit": "image",
            "batch_size": effort.batch_size,
            "max_new_tokens": effort.max_new_tokens,
            "decoding": "greedy",
            "score": "normalised exact match; VQA consensus where an item has ten answers or more",
            "fidelity": "teacher-forced on the original's answer and its end; KL(original || model) in nats",
        },
    }


def _baseline(
    rival: Contestant,
    items: Sequence[Item],
    compressed: Floats,
    base: Floats,
    seed: int,
    effort: Effort,
    progress: Report,
) -> dict[str, Any]:
    answers = answer_all(rival, items, effort, progress)
    ahead = compressed - answers.scores
    groups = [item.image_id for item in items]
    return compare_capabilities(items, answers.scores, base, seed) | {
        "visual_tokens": rival.predictor.image_tokens,
        "after_by": float(ahead.mean()),
        "after_by_ci95": _listed(stats.mean_interval(ahead, groups, seed)),
    }


def _evidence(
    compressed: Contestant | None, items: Sequence[Item], answers: Answers, base: Answers
) -> dict[str, Any] | None:
    if compressed is None or compressed.locator is None:
        return None
    return measure_evidence(compressed.locator, items, answers.scores < base.scores)


def _original(original: Contestant, items: Sequence[Item], base: Answers) -> dict[str, Any]:
    by_capability: dict[str, list[float]] = {}
    for item, score in zip(items, base.scores.tolist(), strict=True):
        by_capability.setdefault(item.category, []).append(score)
    return {
        "name": original.name,
        "visual_tokens": original.predictor.image_tokens,
        "accuracy": base.accuracy,
        "by_capability": {category: float(np.mean(scores)) for category, scores in by_capability.items()},
    }


def _chance(items: Sequence[Item]) -> float | None:
    known = [item.chance for item in items if item.chance is not None]
    return float(np.mean(known)) if len(known) == len(items) else None

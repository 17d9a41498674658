"""Judges a compressed model against the original on the same questions.

Protocol: every model answers the same questions greedily, each through its own prompt template. Answers are
scored item by item, and everything that compares two models is paired. Intervals come from 10,000 bootstrap
resamples of images with a fixed seed. Fidelity is measured by teacher forcing: both models read the
*original's* answer, and their next-token distributions are compared before each of its tokens and once after
the last, where it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtc.data.datasets import Dataset, Item
from vtc.evaluate import stats
from vtc.evaluate.answers import Answers, Contestant, answers_to, ask_all
from vtc.evaluate.asking import MAX_SKIPPED, Asking, Effort, Faults
from vtc.evaluate.evidence import measure_evidence
from vtc.evaluate.fidelity import Fidelity, fidelity_of, follow_all
from vtc.evaluate.gate import Check, at_least, at_most, overall, retention_check
from vtc.evaluate.notes import Notes
from vtc.progress import Report, silent

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Thresholds:
    """What the gate asks for; None asks nothing."""

    min_retention: float = 0.95
    min_top1: float | None = None
    max_kld: float | None = None


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
        "ci95": stats.listed(stats.ratio_interval(scores, base, groups, seed)),
        "n": len(items),
        "images": len(set(groups)),
        "lost": int(np.sum(scores < base)),
        "gained": int(np.sum(scores > base)),
        "accuracy_ci95": stats.listed(stats.mean_interval(scores, groups, seed)),
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
    max_skipped: float = MAX_SKIPPED,
    notes: Notes | None = None,
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
    max_skipped : float
        Share of the questions that may be left out because they cannot be asked; see
        :class:`vtc.evaluate.asking.Faults`.
    notes : Notes or None
        Where answers are noted, and found again.

    Returns
    -------
    dict
        The report, ready for JSON: ``kind``, ``results``, ``fidelity``, ``baselines`` and those ``left_out``, ``gate``,
        and what it takes to read or repeat them (``original``, ``data`` with the items that were ``skipped`` and why,
        ``protocol``).

    Raises
    ------
    InputError
        If more questions cannot be asked than may be left out.
    """
    asking = Asking(effort, Faults(max_skipped, len(dataset.items)), Notes() if notes is None else notes, progress)
    first = ask_all(original, dataset.items, asking, "original")
    second = first if compressed is None else ask_all(compressed, dataset.items, asking, "compressed")
    followed = {} if compressed is None else follow_all(original, compressed, dataset.items, first, asking)
    others = {rival.name: ask_all(rival, dataset.items, asking, f"baseline {rival.name}") for rival in baselines}
    # What one of them could not be asked is no question for the others either.
    skipped = asking.faults.found
    items = [item for item in dataset.items if item.id not in skipped]
    base, answers = answers_to(items, first), answers_to(items, second)
    judged = original if compressed is None else compressed
    result = compare_capabilities(items, answers.scores, base.scores, seed)
    fidelity: dict[str, Any] = {}
    checks: list[Check] = []
    if compressed is not None:
        measured = fidelity_of(items, followed, base, answers)
        fidelity = measured.to_dict(seed)
        checks = gate_checks(result, measured, limits, seed)
    return {
        "kind": "validate",
        "results": {
            judged.name: result
            | {
                "visual_tokens": judged.predictor.image_tokens,
                "layer_average": judged.layer_average,
                "run_as": judged.run_as,
                "evidence": _evidence(compressed, items, answers, base),
            }
        },
        "fidelity": fidelity,
        "baselines": {
            rival.name: _baseline(
                rival, items, answers_to(items, others[rival.name]).scores, answers.scores, base.scores, seed
            )
            for rival in baselines
        },
        "left_out": dict(left_out),
        "gate": {"status": overall(checks), "checks": [check.to_dict() for check in checks]},
        "original": _original(original, items, base),
        "data": {
            "name": dataset.name,
            "items": len(items),
            "images": len({item.image_id for item in items}),
            "sha256": dataset.sha256,
            "chance": _chance(items),
            "skipped": list(skipped.values()),
        },
        "protocol": {
            "seed": seed,
            "resamples": stats.RESAMPLES,
            "level": stats.LEVEL,
            "resampled_unit": "image",
            "batch_size": effort.batch_size,
            "max_new_tokens": effort.max_new_tokens,
            "decoding": ", ".join(["greedy", *original.predictor.generation_rules.words]),
            "score": "normalised exact match; VQA consensus where an item has ten answers or more",
            "fidelity": "teacher-forced on the original's answer and its end; KL(original || model) in nats",
        },
    }


def _baseline(
    rival: Contestant, items: Sequence[Item], scores: Floats, compressed: Floats, base: Floats, seed: int
) -> dict[str, Any]:
    ahead = compressed - scores
    groups = [item.image_id for item in items]
    return compare_capabilities(items, scores, base, seed) | {
        "visual_tokens": rival.predictor.image_tokens,
        "after_by": float(ahead.mean()),
        "after_by_ci95": stats.listed(stats.mean_interval(ahead, groups, seed)),
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

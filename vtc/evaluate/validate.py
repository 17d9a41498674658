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
from vtc.evaluate.answers import Answers, Contestant, Found, Trial, answers_to, ask_all
from vtc.evaluate.asking import MAX_SKIPPED, Asking, Effort, Faults
from vtc.evaluate.evidence import measure_evidence
from vtc.evaluate.fidelity import Fidelity, fidelity_of, follow_all
from vtc.evaluate.gate import Check, at_least, at_most, overall, retention_check, worst
from vtc.evaluate.notes import Notes
from vtc.evaluate.one_by_one import OneByOne
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
    trials = {None: Trial(compressed, baselines, left_out)}
    (part,), common = _judged(original, trials, dataset, asking, limits, seed)
    return {"kind": "validate", **part, **common}


def validate_budgets(
    original: Contestant,
    trials: Mapping[int, Trial],
    dataset: Dataset,
    *,
    limits: Thresholds = Thresholds(),
    seed: int = 0,
    effort: Effort = Effort(),
    progress: Report = silent,
    max_skipped: float = MAX_SKIPPED,
    notes: Notes | None = None,
) -> dict[str, Any]:
    """Measure and judge a model at each of its budgets on the same questions; the original is measured once.

    Parameters
    ----------
    trials : mapping of int to Trial
        Budget, ascending, to the model there and its baselines. A baseline that several have in common answers once.
    original, dataset, limits, seed, effort, progress, max_skipped, notes
        As for :func:`validate`.

    Returns
    -------
    dict
        As of :func:`validate`; what is said there of one model is here under ``budgets``, for each of them, and the
        ``gate`` has the checks of all, each with its ``budget``.

    Raises
    ------
    InputError
        If more questions cannot be asked than may be left out.
    """
    asking = Asking(effort, Faults(max_skipped, len(dataset.items)), Notes() if notes is None else notes, progress)
    parts, common = _judged(original, trials, dataset, asking, limits, seed)
    by_budget = dict(zip(trials, parts, strict=True))
    checks = [{"budget": keep, **check} for keep, part in by_budget.items() for check in part["gate"]["checks"]]
    gate = {"status": worst([part["gate"]["status"] for part in parts]), "checks": checks}
    return {
        "kind": "validate",
        "budgets": {str(keep): part for keep, part in by_budget.items()},
        "gate": gate,
        **common,
    }


def _judged(
    original: Contestant,
    trials: Mapping[int, Trial] | Mapping[None, Trial],
    dataset: Dataset,
    asking: Asking,
    limits: Thresholds,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What is to be said of each trial, and of all of them."""
    first = ask_all(original, dataset.items, asking, "original")
    each = [("" if keep is None else f" at {keep}", trial) for keep, trial in trials.items()]
    models = [(mark, trial.contestant) for mark, trial in each if trial.contestant is not None]
    second = [ask_all(model, dataset.items, asking, f"compressed{mark}") for mark, model in models]
    followed = follow_all(original, [model for _, model in models], dataset.items, first, asking)
    others: dict[int, Found] = {}
    for mark, trial in each:
        for rival in trial.baselines:
            if id(rival) not in others:
                named = f"{rival.name}{mark}"
                others[id(rival)] = ask_all(rival, dataset.items, asking, f"baseline {named}", named)
    # What one of them could not be asked is no question for the others either.
    skipped = asking.faults.found
    items = [item for item in dataset.items if item.id not in skipped]
    verdict = _Verdict(original, items, answers_to(items, first), limits, seed)
    parts = [
        verdict.of(trial, found, along, {rival.name: others[id(rival)] for rival in trial.baselines})
        for (_, trial), found, along in zip(each, second or [first], followed or [{}], strict=True)
    ]
    common = {
        "original": _original(original, items, verdict.base),
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
            "batch_size": asking.effort.batch_size,
            "max_new_tokens": asking.effort.max_new_tokens,
            "decoding": ", ".join(["greedy", *original.predictor.generation_rules.words]),
            "score": "normalised exact match; VQA consensus where an item has ten answers or more",
            "fidelity": "teacher-forced on the original's answer and its end; KL(original || model) in nats",
        },
    }
    return parts, common


@dataclass(frozen=True)
class _Verdict:
    """Judges models by what they and the original answered to items."""

    original: Contestant
    items: Sequence[Item]
    base: Answers
    limits: Thresholds
    seed: int

    def of(self, trial: Trial, found: Found, followed: Found, others: Mapping[str, Found]) -> dict[str, Any]:
        """What is to be said of one trial; without a model, of the original."""
        judged = trial.contestant or self.original
        answers = answers_to(self.items, found)
        result = compare_capabilities(self.items, answers.scores, self.base.scores, self.seed)
        fidelity: dict[str, Any] = {}
        checks: list[Check] = []
        if trial.contestant is not None:
            measured = fidelity_of(self.items, followed, self.base, answers)
            fidelity = measured.to_dict(self.seed)
            checks = gate_checks(result, measured, self.limits, self.seed)
        result |= {
            "visual_tokens": judged.predictor.image_tokens,
            "layer_average": judged.layer_average,
            "run_as": judged.run_as,
            "evidence": _evidence(trial.contestant, self.items, answers, self.base),
        }
        return {
            "results": {judged.name: result | self._spent(judged, found)},
            "fidelity": fidelity,
            "baselines": {
                rival.name: self._baseline(rival, others[rival.name], answers.scores) for rival in trial.baselines
            },
            "left_out": dict(trial.left_out),
            "gate": {
                "status": overall(checks),
                "checks": [check.to_dict() for check in checks],
            },
        }

    def _baseline(self, rival: Contestant, found: Found, compressed: Floats) -> dict[str, Any]:
        scores = answers_to(self.items, found).scores
        ahead = compressed - scores
        groups = [item.image_id for item in self.items]
        return (
            compare_capabilities(self.items, scores, self.base.scores, self.seed)
            | {
                "visual_tokens": rival.predictor.image_tokens,
                "after_by": float(ahead.mean()),
                "after_by_ci95": stats.listed(stats.mean_interval(ahead, groups, self.seed)),
            }
            | self._spent(rival, found)
        )

    def _spent(self, one: Contestant, found: Found) -> dict[str, Any]:
        return one.predictor.spent(self.items, found) if isinstance(one.predictor, OneByOne) else {}


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

"""Latency and memory of bundles, side by side in one run.

Protocol: all models are loaded, then asked the same questions in turn, one at a time; the order of the models
flips from round to round, so that neither a warming cache nor a throttling clock favours one of them. The
first rounds warm up and are left out. Answers have a fixed length: the end token is ignored. Figures are
medians and 90th percentiles over rounds; speedups are ratios of medians, with a bootstrap interval over
rounds. Peak memory is measured apart, in a fresh process for each model (see :mod:`vtc.benchmark.memory`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtc.benchmark.memory import Memory
from vtc.evaluate import stats
from vtc.progress import Report, silent

TERMS = {
    "TTFT": "time to first token: vision encoder, token selection, prefill; without image preprocessing",
    "prefill": "the decoder's share of TTFT: its segments, selection between them, and the head",
    "TPOT": "time per output token after the first, mean over one answer",
    "end to end": "the whole call: preprocessing, tokenising and all tokens of the answer",
    "peak memory": "peak resident host memory of a fresh process that loads the model and asks it once",
    "prefill sees": "sequence length that each decoder segment really got in prefill, text included (median)",
    "GFLOPs": "prefill of one image by the plan's exact formula, with flops_text_tokens of text",
}


@dataclass(frozen=True)
class TimedAnswer:
    """One answer, timed.

    Attributes
    ----------
    ttft_ms, e2e_ms : float
    tpot_ms : float or None
        None for an answer of one token.
    segment_lengths : tuple of int
        Sequence length that each decoder segment got in prefill.
    kv_bytes : int
        Size of the KV cache after prefill.
    new_tokens : int
    vision_ms, prefill_ms : float
        The vision encoder's and the decoder's shares of `ttft_ms`.
    selector_ms : float
        Selection between decoder segments, which is part of `prefill_ms`; 0 where there is none or it is not timed.
    """

    ttft_ms: float
    tpot_ms: float | None
    e2e_ms: float
    segment_lengths: tuple[int, ...]
    kv_bytes: int
    new_tokens: int
    vision_ms: float
    prefill_ms: float
    selector_ms: float = 0.0


@dataclass(frozen=True)
class Runner:
    """A model to time.

    Attributes
    ----------
    name : str
    ask : callable
        Answers question number `i` and times it.
    facts : dict
        What the report says about it beside the timings: ``visual_tokens``, ``flops``, ...
    """

    name: str
    ask: Callable[[int], TimedAnswer]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Rounds:
    """How often models are asked, and for how much.

    Attributes
    ----------
    repeats, warmup : int
        Rounds that count, and rounds before them that do not.
    max_new_tokens : int
        Length of every answer, less where the model's context ends sooner.
    memory : bool
        Whether peak memory is measured too.
    """

    repeats: int = 50
    warmup: int = 3
    max_new_tokens: int = 32
    memory: bool = True


def alternate(
    runners: Sequence[Runner],
    questions: int,
    repeats: int,
    warmup: int,
    progress: Report = silent,
) -> list[list[TimedAnswer]]:
    """Ask all models in turn, flipping their order from round to round.

    Parameters
    ----------
    runners : sequence of Runner
    questions : int
        Number of questions; round r asks number r mod `questions`.
    repeats : int
        Rounds that count.
    warmup : int
        Rounds before them that do not.
    progress : callable

    Returns
    -------
    list over runners of list over counted rounds of Sample
    """
    samples: list[list[TimedAnswer]] = [[] for _ in runners]
    for turn in range(warmup + repeats):
        places = range(len(runners)) if turn % 2 == 0 else reversed(range(len(runners)))
        for place in places:
            sample = runners[place].ask(turn % questions)
            if turn >= warmup:
                samples[place].append(sample)
        progress("timing", turn + 1, warmup + repeats)
    return samples


def summary(runner: Runner, samples: Sequence[TimedAnswer], memory: Memory | None) -> dict[str, Any]:
    """One model's entry in the report."""
    return {
        "name": runner.name,
        **runner.facts,
        "vision_ms": stats.median_p90([sample.vision_ms for sample in samples]),
        "prefill_ms": stats.median_p90([sample.prefill_ms for sample in samples]),
        "ttft_ms": stats.median_p90([sample.ttft_ms for sample in samples]),
        "tpot_ms": stats.median_p90(_known(sample.tpot_ms for sample in samples)),
        "e2e_ms": stats.median_p90([sample.e2e_ms for sample in samples]),
        "segment_lengths": [
            float(length) for length in np.median([sample.segment_lengths for sample in samples], axis=0)
        ],
        "kv_bytes": max(sample.kv_bytes for sample in samples),
        "new_tokens": max(sample.new_tokens for sample in samples),
        "rounds": len(samples),
        "peak_memory_mb": None if memory is None else memory.peak_mb,
        "memory_before_load_mb": None if memory is None else memory.before_load_mb,
    }


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


SPEEDUPS = ("prefill", "ttft", "tpot", "e2e")


def speedup(original: Sequence[TimedAnswer], model: Sequence[TimedAnswer], seed: int = 0) -> dict[str, Any]:
    """How many times faster a model is, by medians over rounds.

    Returns
    -------
    dict
        One entry for each of :data:`SPEEDUPS`, None where there is no such time; their intervals under ``ci95``.
    """
    figures: dict[str, Any] = {}
    spans: dict[str, Any] = {}
    for name in SPEEDUPS:
        pairs = [(getattr(a, f"{name}_ms"), getattr(b, f"{name}_ms")) for a, b in zip(original, model, strict=True)]
        whole = [(a, b) for a, b in pairs if a is not None and b is not None]
        before, after = [a for a, _ in whole], [b for _, b in whole]
        figures[name] = float(np.median(before) / np.median(after)) if whole else None
        interval = stats.median_ratio_interval(before, after, seed)
        spans[name] = None if interval is None else list(interval)
    return figures | {"ci95": spans}


def bench(
    original: Runner | None,
    *models: Runner,
    questions: int,
    repeats: int,
    warmup: int,
    memories: Sequence[Memory | None],
    progress: Report = silent,
) -> dict[str, Any]:
    """Time models, and the original beside them.

    Parameters
    ----------
    original : Runner or None
    models : Runner
        One, or the same one at several budgets, ascending.
    questions, repeats, warmup : int
        See :func:`alternate`.
    memories : sequence of Memory or None
        Of the original, if any, and the models.
    progress : callable

    Returns
    -------
    dict
        The report, ready for JSON: ``kind``, ``runs``, each with its ``speedup`` where it is beside an original,
        ``speedup`` of the last model, ``protocol``.
    """
    runners = [runner for runner in (original, *models) if runner is not None]
    samples = alternate(runners, questions, repeats, warmup, progress)
    return report_of(runners, samples, memories, questions, warmup, beside=original is not None)


def report_of(
    runners: Sequence[Runner],
    samples: Sequence[Sequence[TimedAnswer]],
    memories: Sequence[Memory | None],
    questions: int,
    warmup: int,
    *,
    beside: bool = True,
) -> dict[str, Any]:
    """The report of models that were timed, `beside` the original as the first of them; see :func:`bench`."""
    entries = zip(runners, samples, memories, strict=True)
    runs = [summary(runner, taken, memory) for runner, taken, memory in entries]
    none: dict[str, Any] = {**dict.fromkeys(SPEEDUPS), "ci95": dict.fromkeys(SPEEDUPS)}
    if beside:
        for run, taken in zip(runs[1:], samples[1:], strict=True):
            run["speedup"] = speedup(samples[0], taken)
    return {
        "kind": "bench",
        "runs": runs,
        "speedup": runs[-1].get("speedup", none),
        "protocol": {
            "rounds": len(samples[0]),
            "warmup_rounds": warmup,
            "questions": questions,
            "order": "models take turns within a round, and the order flips every round",
            "batch_size": 1,
            "end_token": "ignored, so that all answers have the same length",
            "terms": dict(TERMS),
        },
    }

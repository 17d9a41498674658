"""Models take turns, warm-up is left out, and the figures are those of the samples."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from vtc.benchmark.memory import Memory
from vtc.benchmark.report import Runner, TimedAnswer, alternate, bench, speedup


def sample(ttft_ms: float, tpot_ms: float | None = 2.0) -> TimedAnswer:
    return TimedAnswer(ttft_ms, tpot_ms, ttft_ms + 10, (40,), 1000, 6, vision_ms=ttft_ms / 4, prefill_ms=ttft_ms / 2)


@dataclass
class Clockwork:
    """Takes the times it is given, and writes down what it was asked."""

    name: str
    log: list[tuple[str, int]]
    times: list[float] = field(default_factory=lambda: [1.0])
    asked: int = 0

    def ask(self, question: int) -> TimedAnswer:
        self.log.append((self.name, question))
        self.asked += 1
        return sample(self.times[(self.asked - 1) % len(self.times)])

    def runner(self) -> Runner:
        return Runner(self.name, self.ask, {"visual_tokens": 3, "flops": 7})


def test_models_take_turns_and_the_order_flips() -> None:
    log: list[tuple[str, int]] = []
    alternate([Clockwork("a", log).runner(), Clockwork("b", log).runner()], questions=2, repeats=4, warmup=0)
    assert log == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]


def test_warm_up_runs_but_does_not_count() -> None:
    log: list[tuple[str, int]] = []
    cold = Clockwork("a", log, times=[1000.0, 1000.0, 5.0, 5.0, 5.0])
    (samples,) = alternate([cold.runner()], questions=1, repeats=3, warmup=2)
    assert len(log) == 5
    assert [taken.ttft_ms for taken in samples] == [5.0, 5.0, 5.0]


def test_report_has_medians_p90_memory_and_speedup() -> None:
    times = [float(n) for n in range(1, 12)]
    slow = Clockwork("original", [], times=[10 * t for t in times])
    fast = Clockwork("small", [], times=times)
    memories = [Memory(50.0, 120.0), Memory(50.0, 80.0)]
    report = bench(slow.runner(), fast.runner(), questions=1, repeats=11, warmup=0, memories=memories)
    original, small = report["runs"]
    assert original["ttft_ms"] == {"p50": 60.0, "p90": 100.0}
    assert small["ttft_ms"] == {"p50": 6.0, "p90": 10.0}
    assert (original["peak_memory_mb"], small["peak_memory_mb"]) == (120.0, 80.0)
    assert small["segment_lengths"] == [40.0]
    assert small["prefill_ms"] == {"p50": 3.0, "p90": 5.0}
    assert report["speedup"]["ttft"] == report["speedup"]["prefill"] == pytest.approx(10.0)
    assert report["speedup"]["tpot"] == pytest.approx(1.0)
    assert report["speedup"]["e2e"] == pytest.approx(70 / 16)
    json.dumps(report, allow_nan=False)


def test_a_model_alone_has_no_speedup() -> None:
    report = bench(None, Clockwork("a", []).runner(), questions=1, repeats=2, warmup=0, memories=[None])
    assert [run["name"] for run in report["runs"]] == ["a"]
    assert report["speedup"]["ttft"] is None
    assert report["runs"][0]["peak_memory_mb"] is None


def test_answers_of_one_token_have_no_tpot() -> None:
    figures = speedup([sample(2, None)] * 3, [sample(1, None)] * 3)
    assert figures["tpot"] is None
    assert figures["ttft"] == 2.0


def test_an_interval_that_holds_one_does_not_claim_a_speedup() -> None:
    slow = [sample(t) for t in (10, 12, 11, 30, 9, 10, 13, 12)]
    figures = speedup(slow, list(reversed(slow)))
    low, high = figures["ci95"]["ttft"]
    assert low <= 1 <= high

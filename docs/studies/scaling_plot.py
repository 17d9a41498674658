"""The plot of :mod:`docs.studies.scaling`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from docs.studies.pages import Results
from docs.studies.scaling import FEW, rate

COLORS = ("#1f5fa8", "#d1331b", "#3b8f4a", "#e98a15")
MARKS = (("visual", "o"), ("text", "s"))
TICKS = (64, 128, 256, 512, 1024, 2048)


def draw(results: Results, path: Path) -> None:
    """Prefill against its FLOP line, the one divided by the other, and one more token."""
    figure, (times, ratios, tokens) = plt.subplots(1, 3, figsize=(16, 5.4))
    for (name, rows), color in zip(results["variants"].items(), COLORS, strict=False):
        pace, reading = rate(results, name), min(row["token"]["median"] for row in rows)
        _lines(times, results, pace, reading, color)
        for grows, marker in MARKS:
            of = [pair for pair in zip(results["predicted"], rows, strict=True) if pair[1]["grows"] == grows]
            at, took = [work["tokens"] for work, _ in of], [row["prefill"] for _, row in of]
            style: dict[str, Any] = {"color": color, "mfc": color if grows == "visual" else "white", "ms": 5.5}
            medians = [one["median"] for one in took]
            spread = [[one["median"] - one["q1"] for one in took], [one["q3"] - one["median"] for one in took]]
            times.errorbar(at, medians, yerr=spread, fmt=marker, capsize=2, **style)
            off = [median * pace / work["flops"] for median, (work, _) in zip(medians, of, strict=True)]
            ratios.plot(at, off, f"{marker}-", lw=0.9, **style)
            tokens.plot(at, [row["token"]["median"] for _, row in of], f"{marker}-", lw=0.9, **style)
    _square(results, ratios)
    for axis in (times, ratios, tokens):
        axis.set_xscale("log", base=2)
        axis.set_xticks(TICKS, [f"{tick:,}" for tick in TICKS])
        axis.minorticks_off()
        axis.set(xlim=(56, 3400), xlabel=f"tokens of the prompt, {FEW} of the kind that does not grow")
        axis.grid(alpha=0.3)
    times.set_yscale("log")
    times.set(title="Prefill", ylabel="ms")
    times.legend(handles=_legend(list(results["variants"])), fontsize=8, loc="upper left")
    ratios.axhline(1, color="black", lw=0.8)
    ratios.set(title="Prefill, measured / FLOP line", ylabel="1: as FLOPs predict", ylim=(0.9, None))
    tokens.set(title="One more token", ylabel="ms", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines(axis: Any, results: Results, pace: float, reading: float, color: str) -> None:
    """What FLOPs predict: all, with a reading of the weights, and without attention's square."""
    work = sorted(results["predicted"], key=lambda one: int(one["tokens"]))
    x = [one["tokens"] for one in work]
    axis.plot(x, [one["flops"] / pace for one in work], "-", color=color, lw=1.1)
    axis.plot(x, [one["flops"] / pace + reading for one in work], "--", color=color, lw=1.1)
    axis.plot(x, [(one["flops"] - one["square"]) / pace for one in work], ":", color=color, lw=1.3)


def _legend(names: list[str]) -> list[Any]:
    said = [
        ("o", "none", "more visual tokens, median and quartiles"),
        ("s", "none", "more text"),
        ("", "-", "exact FLOPs at the best rate reached"),
        ("", "--", "and the weights read once (one token's time)"),
        ("", ":", "without attention's n²"),
    ]
    colors = [Line2D([], [], color=color, lw=5, label=name) for name, color in zip(names, COLORS, strict=False)]
    grey: dict[str, Any] = {"color": "#4d4d4d"}
    fill = {"o": "#4d4d4d"}
    marks = [
        Line2D([], [], marker=mark, ls=style, mfc=fill.get(mark, "white"), label=text, **grey)
        for mark, style, text in said
    ]
    return [*colors, *marks]


def _square(results: Results, axis: Any) -> None:
    """How much of the operations is attention's square, on an axis of its own."""
    beside = axis.twinx()
    work = sorted(results["predicted"], key=lambda one: int(one["tokens"]))
    share = [100 * one["square"] / one["flops"] for one in work]
    beside.fill_between([one["tokens"] for one in work], share, color="#8c8c8c", alpha=0.25, lw=0)
    beside.set(ylabel="grey: share of FLOPs that grows with n², %", ylim=(0, 100))
    beside.minorticks_off()

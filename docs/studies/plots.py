"""Plots of the studies (matplotlib), and pictures of kept tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image

from docs.studies.harness import Answers, Questions
from vtc.evaluate.picture import Panel, draw, seen_by_model

SHOWN = 3
STYLE = {
    "learned + text": ("#d1331b", "o-", 2.4),
    "learned": ("#e98a15", "o-", 2.0),
    "VTC-CLS + text": ("#1f5fa8", "s--", 1.5),
    "VTC-CLS": ("#3f8fd0", "s-", 1.5),
    "CLS attention": ("#8fc1e8", "s-", 1.5),
    "uniform": ("#4d4d4d", "^-", 1.2),
    "random": ("#8c8c8c", "^-", 1.2),
    "downsampling": ("#bdbdbd", "v-", 1.2),
}


def plot_budgets(results: Mapping[str, Any], path: Path) -> None:
    """Retention against the layer average, one line a method; bars are the spread over seeds."""
    figure, axis = plt.subplots(figsize=(8, 5))
    shares = [float(share) for share in results["budgets"]]
    for name, (color, line, width) in STYLE.items():
        rows = [results["budgets"][share][name] for share in results["budgets"]]
        means, spread = [100 * row["mean"] for row in rows], [100 * row["spread"] for row in rows]
        x = [100 * share for share in shares]
        axis.errorbar(x, means, yerr=spread, fmt=line, color=color, lw=width, ms=5, capsize=3, label=name)
    axis.axhline(100 * results["blind"]["retention"], color="black", lw=1, ls=":", label="blind")
    axis.axhline(95, color="black", lw=0.6)
    axis.set_xscale("log")
    axis.set_xticks([100 * share for share in shares], [f"{100 * share:g} %" for share in shares])
    axis.minorticks_off()
    axis.set(xlabel="visual tokens, mean over decoder layers", ylabel="retention of accuracy, %", ylim=(20, 103))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=9)
    _save(figure, path)


LEARNED = "LearnPruner, stage 1"
PANELS = {
    "attention": ("FasterVLM", "VTC-CLS", "HiPrune", "FoPru", "VisPruner", "GlobalCom2", LEARNED),
    "diversity and coverage": ("DivPrune", "ToDRE, stage 1", "MMTok", "CDPruner", LEARNED),
    "merging": ("VScan, stage 1", "VisionZip", "PruMerge", "PruMerge+", "ToMe", "Turbo", "clustering", "pooling"),
}
BASELINES = {"uniform": ("^-", "#4d4d4d"), "random": ("s-", "#8c8c8c"), "downsampling": ("v-", "#bdbdbd")}


def plot_selectors(results: Mapping[str, Any], path: Path) -> None:
    """Retention of every selector against its budget: a panel for each kind, baselines in grey in all.

    A colour is one method's throughout; legends stand beside the panels.
    """
    panels = [(title, {name: results["before"][name] for name in names}) for title, names in PANELS.items()]
    panels.append(("inside the decoder", results["inside"]))
    colors = _colors([name for _, rows in panels for name in rows])
    figure, axes = plt.subplots(2, 2, figsize=(14, 9), sharey=True)
    for axis, (title, rows) in zip(axes.flat, panels, strict=True):
        inside = rows is results["inside"]
        for name, (marker, grey) in BASELINES.items():
            label = f"{name}, before the decoder" if inside else name
            _line(axis, results["before"][name], marker, label=label, color=grey, lw=1.2)
        for name, row in rows.items():
            _line(axis, row, "o", label=name, lw=1.6, ls="--" if name == LEARNED else "-", color=colors[name])
        axis.axhline(100 * results["blind"]["retention"], color="black", lw=1, ls=":", label="blind")
        axis.set(title=title, ylim=(25, 103))
        axis.set_xlabel("visual tokens kept" + (" from decoder layer 2 on" if inside else ""))
        axis.grid(alpha=0.3)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("retention of accuracy, %")
    _save(figure, path)


def plot_projectors(results: Mapping[str, Any], path: Path) -> None:
    """Retention of every projector against its tokens; what is not trained is dashed."""
    rows = {label: row for label, row in results["budgets"].items() if "alone" not in label}
    colors = _colors(list(rows))
    figure, axis = plt.subplots(figsize=(9, 5))
    for label, row in rows.items():
        tokens = [int(keep) for keep in row]
        untrained = "untrained" in label or label in BASELINES
        style = {"ls": "--" if untrained else "-", "lw": 2.4 if label == "qmop" else 1.4, "color": colors[label]}
        axis.plot(tokens, [100 * cell["retention"] for cell in row.values()], marker="o", ms=4, label=label, **style)
    axis.axhline(100 * results["blind"]["retention"], color="black", lw=1, ls=":", label="blind")
    axis.set_xscale("log")
    ticks = sorted({int(keep) for row in rows.values() for keep in row})
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.minorticks_off()
    axis.set(xlabel="visual tokens", ylabel="retention of accuracy, %", ylim=(20, 103))
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    _save(figure, path)


def _colors(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each method; no grey, which is the baselines'."""
    strong = [plt.get_cmap("tab20")(number) for number in (*range(0, 14, 2), 16, 18)]
    pale = [plt.get_cmap("tab20")(number) for number in (*range(1, 14, 2), 17, 19)]
    dark = [tuple(0.55 * part for part in color[:3]) for color in strong]
    others = [name for name in dict.fromkeys(names) if name != LEARNED]
    return {LEARNED: "black", **dict(zip(others, [*strong, *dark, *pale], strict=False))}


def _line(axis: Any, row: Mapping[str, Any], marker: str, **style: Any) -> None:
    shares = [100 * float(share) for share in row]
    axis.plot(shares, [100 * cell["retention"] for cell in row.values()], marker, ms=4, **style)
    axis.set_xscale("log")
    axis.set_xticks(shares, [f"{share:g} %" for share in shares])
    axis.minorticks_off()


def plot_sweep(results: Mapping[str, Any], path: Path) -> None:
    """Where to cut, and how well each layer's attention ranks."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    layers = results["cuts"]["layer"]
    left.plot([int(layer) for layer in layers], [100 * v for v in layers.values()], "o-", color="#d1331b")
    left.set(xlabel="cut before decoder layer", ylabel="retention, %", title="learned + text at 5.5 %: where to cut")
    for name, row in results["sweep"].items():
        right.plot([int(layer) for layer in row], [100 * v for v in row.values()], "o-", label=name.replace("_", " "))
    right.set(xlabel="layer whose attention ranks", title="90 % pruned before layer 2, ranked by layer L (a probe)")
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    _save(figure, path)


def plot_shift(results: Mapping[str, Any], path: Path) -> None:
    """Slope of attention over the token's index, for each layer."""
    figure, axis = plt.subplots(figsize=(8, 4))
    for place, (kind, label) in enumerate([("vision", "from visual tokens"), ("text", "from the text")]):
        rows = results["shift"][kind]
        x = [layer + 0.12 * (2 * place - 1) for layer in range(len(rows))]
        means = [row["slope"] for row in rows]
        low = [row["slope"] - row["ci95"][0] for row in rows]
        high = [row["ci95"][1] - row["slope"] for row in rows]
        axis.errorbar(x, means, yerr=[low, high], fmt="o", capsize=3, label=label)
    axis.axhline(0, color="black", lw=0.8)
    axis.set(xlabel="decoder layer", ylabel="slope over the index, in means")
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path)


def show_kept(questions: Questions, headline: Mapping[str, Sequence[Answers]], path: Path) -> None:
    """The first scenes: what the two-stage recipe, the pruner alone and VTC-CLS keep."""
    rows = []
    for number in range(SHOWN):
        item = questions.items[number]
        pixels = seen_by_model(lambda images: questions.adapter.preprocess(images).numpy(), item.load())
        two, one, cls = (headline[name][0].kept for name in ("learned + text", "learned", "VTC-CLS"))
        panels = [
            Panel("256 tokens"),
            Panel(f"learned + text, into the decoder: {two[0].shape[1]}", two[0][number]),
            Panel(f"after the cut: {two[1].shape[1]}", two[1][number]),
            Panel(f"learned alone: {one[0].shape[1]}", one[0][number]),
            Panel(f"VTC-CLS: {cls[0].shape[1]}", cls[0][number]),
        ]
        title = f"{item.question}   {item.answers[0]}"
        rows.append(draw(pixels, questions.grid, panels, title))
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, sum(one.height for one in rows[:number])))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3), Image.Resampling.LANCZOS).save(path, optimize=True)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)

"""Tables of a page, filled in between ``<!-- table: NAME -->`` and ``<!-- end -->`` from a study's results."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Results = Mapping[str, Any]
Tables = Mapping[str, tuple[str, Callable[[Results], str]]]
_SLOT = re.compile(r"(<!-- table: ([a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_tables(page: Path, results: Results, tables: Tables | None = None) -> None:
    """Write the tables of a page that these results are for; others stay. `tables` are those of LearnPruner's page."""
    page.write_text(filled(page.read_text(encoding="utf-8"), results, tables or TABLES), encoding="utf-8")


def filled(text: str, results: Results, tables: Tables) -> str:
    """Return the text of a page with those of its tables that these results are for; other studies' tables stay."""

    def slot_filled(slot: re.Match[str]) -> str:
        if slot[2] not in tables:
            return slot[0]  # of another study
        key, make = tables[slot[2]]
        return f"{slot[1]}\n{make(results)}\n\n{slot[3]}" if key in results else slot[0]

    return _SLOT.sub(slot_filled, text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are left, the others right."""
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f} %"


def points(row: Mapping[str, Any], digits: int = 1) -> str:
    """A difference in percentage points with its interval."""
    told, low, high = (f"{100 * value:+.{digits}f}" for value in (row["difference"], *row["ci95"]))
    return f"{told} [{low}, {high}]"


def _summary(results: Results) -> str:
    rows = results["budgets"]["0.055"]
    ahead = results["headline"]["ahead"]
    body = []
    for name, row in rows.items():
        low, high = row["ci95"]
        retained = f"**{percent(row['retention'])}**" if name == "learned + text" else percent(row["retention"])
        difference = points(ahead[name]) if name in ahead else ""
        body.append([name, f"{row['layer_average']:.1f}", retained, f"[{percent(low)}, {percent(high)}]", difference])
    blind = results["blind"]
    body.append(["blind (no image)", "0", percent(blind["retention"]), "", ""])
    head = ["method", "tokens, layer average", "retention", "95 % interval", "learned + text is above it by, points"]
    return table(head, body)


def _budgets(results: Results) -> str:
    shares = list(results["budgets"])
    names = list(results["budgets"][shares[0]])

    def cell(row: Mapping[str, Any]) -> str:
        return percent(row["mean"]) + (f" ± {100 * row['spread']:.1f}" if len(row["seeds"]) > 1 else "")

    body = [[name, *(cell(results["budgets"][share][name]) for share in shares)] for name in names]
    return table(["tokens, layer average", *(percent(float(share)) for share in shares)], body)


def _capabilities(results: Results) -> str:
    rows = results["headline"]["by_capability"]
    head = list(next(iter(rows.values())))
    return table(["method", *head], [[name, *(percent(row[c]) for c in head)] for name, row in rows.items()])


def _evidence(results: Results) -> str:
    body = []
    for name, steps in results["headline"]["evidence"].items():
        for step, row in enumerate(steps):
            where = "into the decoder" if step == 0 else "after the cut"
            body.append([name, where, str(row["tokens"]), percent(row["recall"]), percent(row["seen"])])
    return table(["method", "where", "tokens", "evidence kept", "questions with a kept patch in every box"], body)


def _ablation(results: Results) -> str:
    rows = results["ablation"]
    seeds = len(next(iter(rows.values())))
    body = [
        [name, *(percent(value) for value in values), percent(sum(values) / seeds)] for name, values in rows.items()
    ]
    return table(["", *(f"seed {seed}" for seed in range(seeds)), "mean"], body)


def _cut_layer(results: Results) -> str:
    layers = results["cuts"]["layer"]
    return table(["cut before layer", *layers], [["retention", *map(percent, layers.values())]])


def _queries(results: Results) -> str:
    rows = results["cuts"]["queries"]
    layers = list(next(iter(rows.values())))
    body = [[name.replace("_", " "), *(percent(row[layer]) for layer in layers)] for name, row in rows.items()]
    return table(["who asks", *(f"layer {layer}" for layer in layers)], body)


def _ratio(results: Results) -> str:
    rows = results["cuts"]["ratio"]
    return table(["tokens before the cut to after it", *(f"{name} : 1" for name in rows)],
                 [["retention", *map(percent, rows.values())]])  # fmt: skip


def _sweep(results: Results) -> str:
    rows = results["sweep"]
    layers = list(next(iter(rows.values())))
    body = [[name.replace("_", " "), *map(percent, row.values())] for name, row in rows.items()]
    return table(["ranked by layer", *layers], body)


def _shift(results: Results) -> str:
    def cell(row: Mapping[str, Any]) -> str:
        return f"{row['slope']:+.2f} [{row['ci95'][0]:+.2f}, {row['ci95'][1]:+.2f}]"

    rows = results["shift"]
    layers = [str(layer) for layer in range(len(rows["text"]))]
    body = [[layer, cell(rows["vision"][int(layer)]), cell(rows["text"][int(layer)])] for layer in layers]
    return table(["layer", "from visual tokens", "from the text after the image"], body)


def _exported(results: Results) -> str:
    row = results["exported"]
    body = [[percent(row["accuracy_pytorch"], 2), percent(row["accuracy_bundle"], 2), percent(row["equal_tokens"], 2)]]
    return table(["accuracy in PyTorch", "accuracy of the bundle, ONNX Runtime", "equal greedy tokens"], body)


def _training(results: Results) -> str:
    found = results["training"]
    rows = found["settings"]
    budgets = [key for key in next(iter(rows.values())) if key != "seconds"]
    body = [[name, *(percent(row[keep]) for keep in budgets), f"{row['seconds']} s"] for name, row in rows.items()]
    body.append(["all 256 tokens", *[percent(found["unpruned"])] * len(budgets), ""])
    return table(["", *(f"{keep} tokens" for keep in budgets), "time"], body)


TABLES: Tables = {
    "summary": ("headline", _summary),
    "budgets": ("budgets", _budgets),
    "capabilities": ("headline", _capabilities),
    "evidence": ("headline", _evidence),
    "ablation": ("ablation", _ablation),
    "cut_layer": ("cuts", _cut_layer),
    "queries": ("cuts", _queries),
    "ratio": ("cuts", _ratio),
    "sweep": ("sweep", _sweep),
    "shift": ("shift", _shift),
    "training": ("training", _training),
    "exported": ("exported", _exported),
}
"""Name of a table to the part of the results that it is made from, and its maker."""

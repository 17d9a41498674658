"""Selectors that docs/selectors.md compares, and its tables of what was measured.

Apart from the study itself, so that the page can be written without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.studies.pages import Tables, percent, table
from vtc.reference import reference_part

SHARES = (0.5, 0.25, 0.11, 0.055)
CUT_BEFORE = 2
"""Decoder layer before which the selectors inside the decoder prune, as most of their authors do."""
KEEPS = (64, 192)
"""Budgets at which graphs are counted and timed."""

BEFORE: dict[str, Any] = {
    "uniform": "uniform",
    "random": "random",
    "FasterVLM": "cls_attention",
    "VTC-CLS": {"name": "cls_attention", "last": 4},
    "HiPrune": "hiprune",
    "FoPru": "fopru",
    "FoPru, rows": {"name": "fopru", "strategy": "row"},
    "VisPruner": "vispruner",
    "GlobalCom2": "globalcom2",
    "DivPrune": "divprune",
    "ToDRE, stage 1": "todre",
    "MMTok": "mmtok",
    "CDPruner": "cdpruner",
    "CDPruner, negative cosine": {"name": "cdpruner", "relevance": "negative_cosine"},
    "pooling": "pooling",
    "VScan, stage 1": "vscan",
    "VisionZip": "visionzip",
    "VisionZip, as published": {"name": "visionzip", "as_published": True},
    "PruMerge": "prumerge",
    "PruMerge, as published": {"name": "prumerge", "as_published": True},
    "PruMerge+": {"name": "prumerge", "spatial": True},
    "ToMe": "tome",
    "Turbo": "turbo",
    "clustering": "clustering",
    "LearnPruner, stage 1": {"name": "learned", "diversity": 0.0, "checkpoint": reference_part("pruner").name},
}
"""Label of a selector before the decoder to how a recipe names it."""

INSIDE: dict[str, Any] = {
    "text attention": "text_attention",
    "FastV": "fastv",
    "PyramidDrop": "pyramiddrop",
    "FEATHER": "feather",
    "SparseVLM": "sparsevlm",
    "SparseVLM, nothing recycled": {"name": "sparsevlm", "recycle": 0.0},
    "VisionDrop": "visiondrop",
    "DART": "dart",
    "Relevance, before layer 1": {"name": "relevance", "checkpoint": "relevance.safetensors"},
}
"""The same inside the decoder."""


def word(selector: Any) -> str:
    """Say what a recipe calls a selector, with the options that make it this one."""
    if selector is None:
        return ""
    if isinstance(selector, str):
        return f"`{selector}`"
    options = {key: value for key, value in selector.items() if key not in ("name", "checkpoint")}
    told = "".join(f", `{key}: {str(value).lower()}`" for key, value in options.items())
    return f"`{selector['name']}`{told}"


def _cell(row: Mapping[str, Any]) -> str:
    """Retention; bold where it is above that of random tokens beyond doubt, in brackets where it is below."""
    text = percent(row["retention"])
    if "ahead_of_random" not in row:
        return text
    low, high = row["ahead_of_random"]["ci95"]
    return f"**{text}**" if low > 0 else f"({text})" if high < 0 else text


def _before(results: Mapping[str, Any]) -> str:
    body = []
    for name, row in results["before"].items():
        body.append([name, word(BEFORE.get(name)), *(_cell(row[str(share)]) for share in SHARES)])
    return table(["tokens kept", "in a recipe", *map(percent, SHARES)], body, left=2)


def _inside(results: Mapping[str, Any]) -> str:
    rows = results["inside"]
    averages = next(iter(rows.values()))
    body = []
    for name, row in rows.items():
        body.append([name, word(INSIDE[name]), *(percent(row[str(share)]["retention"]) for share in SHARES)])
    body.append(["layer average", "", *(f"{averages[str(share)]['layer_average']:.0f} tokens" for share in SHARES)])
    return table([f"tokens kept from layer {CUT_BEFORE} on", "in a recipe", *map(percent, SHARES)], body, left=2)


def _cost_table(results: Mapping[str, Any]) -> str:
    body = []
    for name, row in results["cost"].items():
        line = [name, word((BEFORE | INSIDE)[name])]
        for keep in KEEPS:
            cost = row[str(keep)]
            line += [str(cost["nodes"]), f"{cost['us']:.0f}", percent(cost["share"])]
        body.append(line)
    head = [part for keep in KEEPS for part in (f"nodes, K = {keep}", "µs", "of TTFT")]
    return table(["selector", "in a recipe", *head], body, left=2)


TABLES: Tables = {
    "before": ("before", _before),
    "inside": ("inside", _inside),
    "cost": ("cost", _cost_table),
}

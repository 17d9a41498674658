"""Projectors that docs/projectors.md compares, and its tables of what was measured.

Apart from the study itself, so that the page can be written without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.studies.pages import Tables, percent, points, table
from vtc.recipe.projectors.qmop import BRANCHES

BUDGETS = (64, 36, 16, 9)
HEADLINES = (36, 16)
"""Budgets at which QMoP is taken apart."""
ELASTIC = "deco"
"""The elastic projector of which one model is compared with one for each budget."""

METHODS: dict[str, dict[str, Any]] = {
    **{
        name: {"name": name}
        for name in ("qmop", "deco", "pixel_shuffle", "ldpv2", "tokenpacker", "tokenflex", "mqt", "quecc")
    },
    **{f"{name} + LoRA": {"name": name, "lora": {}} for name in ("qmop", "deco")},
    "c_abstractor": {"name": "c_abstractor", "hidden": 128},  # its authors' width is eight times this model's
    "qmop, image alone": {"name": "qmop", "question": False},
    **{f"qmop, {branch} alone": {"name": "qmop", "branches": [branch]} for branch in BRANCHES},
}
"""Label of a projector to how a recipe names it."""

UNTRAINED: dict[str, Any] = {
    "pooling, untrained": "pooling",
    "VTC-CLS, untrained": {"name": "cls_attention", "last": 4},
    "MMTok, untrained": "mmtok",
    "LearnPruner, stage 1": {"name": "learned", "diversity": 0.0, "checkpoint": "pruner.safetensors"},
}
"""Label of a selector to how a recipe names it, for comparison at an equal number of tokens."""


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{percent(row['retention'])} [{percent(low)}, {percent(high)}]"


def _budgets(results: Mapping[str, Any]) -> str:
    body = []
    for label, rows in results["budgets"].items():
        body.append([label, *(_interval(rows[str(keep)]) if str(keep) in rows else "" for keep in BUDGETS)])
    return table(["projector or selector", *(f"{keep} tokens" for keep in BUDGETS)], body)


def _capabilities(results: Mapping[str, Any]) -> str:
    rows = results["capabilities"]
    head = list(next(iter(rows.values())))
    return table(["16 tokens", *head], [[label, *(percent(row[c]) for c in head)] for label, row in rows.items()])


def _branches(results: Mapping[str, Any]) -> str:
    body = []
    for keep, found in results["qmop"].items():
        body.append([keep, "qmop", _interval(found["qmop"]), ""])
        body += [[keep, label, _interval(row), points(row["behind"])] for label, row in found["rivals"].items()]
    return table(["tokens", "", "retention", "qmop is above it by, points"], body, left=2)


def _router(results: Mapping[str, Any]) -> str:
    body = []
    for keep, found in results["qmop"].items():
        for kind, row in found["router"].items():
            shares = [f"{percent(row['weight'][name], 0)} / {percent(row['left_out'][name], 0)}" for name in BRANCHES]
            body.append([keep, kind, *shares, f"{row['entropy']:.2f}"])
    head = ["tokens", "questions", *(f"{name}: weight / left out" for name in BRANCHES), "entropy, bits"]
    return table(head, body, left=2)


def _elastic(results: Mapping[str, Any]) -> str:
    body = []
    for keep, row in results["elastic"].items():
        body.append([keep, _interval(row["separate"]), _interval(row["elastic"]), points(row["difference"])])
    return table(["tokens", "trained for this number", "one model for all", "one is above the other by, points"], body)


def _cost(results: Mapping[str, Any]) -> str:
    body = []
    for label, rows in results["cost"].items():
        cells = [f"{rows[str(keep)]['mflops']:.1f}" if str(keep) in rows else "" for keep in BUDGETS]
        parameters = [row["parameters"] for row in rows.values()]
        body.append([label, f"{max(parameters) / 1000:.0f}", *cells])
    return table(["projector", "parameters, thousands", *(f"MFLOP, {keep} tokens" for keep in BUDGETS)], body)


TABLES: Tables = {
    "projector_budgets": ("budgets", _budgets),
    "projector_capabilities": ("capabilities", _capabilities),
    "qmop_branches": ("qmop", _branches),
    "qmop_router": ("qmop", _router),
    "elastic": ("elastic", _elastic),
    "projector_cost": ("cost", _cost),
}

"""Answers in OpenVINO beside ONNX Runtime's in float32: ``python -m docs.studies.openvino --work DIR``.

The reference VLM's bundles of :mod:`docs.studies.precision`, on questions of the test split. Writes
``docs/results/openvino.json`` and the table of ``docs/openvino.md``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from docs.studies.pages import fill_tables, percent, table
from docs.studies.precision import DOCS, RECIPES, answer, bundle_of
from vtc.data.datasets import load_dataset
from vtc.evaluate import stats
from vtc.runtime.variants import PORTABLE

RUN = ("fp32", "bf16", "q4", "q4-bf16", "q4-static", "q4-static-bf16", "int8", "int8-bf16")
FILE = DOCS / "results" / "openvino.json"
QUESTIONS = 600


def study(recipe: str, work: Path, count: int) -> dict[str, Any]:
    """All figures of a recipe, by precision."""
    items = load_dataset("reference", count, 0, "test").items
    images = [item.image_id for item in items]
    bundle = bundle_of(recipe, work)
    plain, right = answer(bundle, "fp32" + PORTABLE, items)
    found: dict[str, Any] = {}
    for precision in RUN:
        tokens, scores = answer(bundle, precision, items, "openvino")
        found[precision] = {
            "retention": float(scores.sum() / right.sum()),
            "ci95": list(stats.ratio_interval(scores, right, images, seed=0) or ()),
            "equal_answers": float(np.mean([a == b for a, b in zip(tokens, plain, strict=True)])),
        }
        print(recipe, precision, found[precision], flush=True)
    return found


def _table(results: Any) -> str:
    body = []
    for precision in RUN:
        row = [f"`{precision}`"]
        for recipe in RECIPES:
            one = results[recipe]["precisions"][precision]
            low, high = map(percent, one["ci95"])
            row += [f"{percent(one['retention'])} [{low}, {high}]", percent(one["equal_answers"])]
        body.append(row)
    return table(
        ["precision", *(title for name in RECIPES for title in (f"{name}: of fp32's accuracy", "equal answers"))], body
    )


def main() -> None:
    """Measure, and fill the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--work", type=Path, required=True, help="where bundles are kept")
    asked = parser.parse_args()
    results = {
        recipe: {"questions": asked.questions, "precisions": study(recipe, asked.work, asked.questions)}
        for recipe in RECIPES
    }
    FILE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    fill_tables(DOCS / "openvino.md", {"all": results}, {"openvino": ("all", lambda found: _table(found["all"]))})


if __name__ == "__main__":
    main()

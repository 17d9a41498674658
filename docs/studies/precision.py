"""Everything that docs/precision.md shows, measured on the reference VLM: ``python -m docs.studies.precision``.

Exports the original and a recipe in every precision that a CPU can run, answers the same questions of the test split
with each, and writes ``docs/results/precision.json`` and the tables.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from docs.studies.pages import fill_tables, percent, table
from exporters.onnx import ExportRequest, export
from exporters.precision import NAMES
from vtc.bundle.manifest import load_manifest
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import Origin
from vtc.data.datasets import Item, load_dataset
from vtc.data.samples import samples_from
from vtc.evaluate import stats
from vtc.evaluate.metrics import answer_score
from vtc.models import load_adapter, model_digest
from vtc.progress import progress
from vtc.recipe import Recipe, RecipeSource
from vtc.reference import reference_dir, reference_part
from vtc.runtime.variants import PORTABLE
from vtc.runtime.vlm import VLM

DOCS = Path(__file__).resolve().parents[1]
RUN = tuple(name for name in NAMES if name != "bf16")
"""No CPU runs bfloat16 in ONNX Runtime."""
OPTIMISED = ("fp32-ort", "fp32-opset23", "q4-ort", "q4-static-ort", "int8-ort", "fp16-ort")
QUESTIONS, SAMPLES, CALIBRATION, BATCH, MAX_NEW_TOKENS = 1200, 16, 64, 16, 6
RECIPES: dict[str, dict[str, Any]] = {
    "none": {"stages": []},
    "LearnPruner, 5.5 %": {
        "budget": {"keep_average": 0.055, "ratio": 3.0},
        "stages": [
            {
                "kind": "prune",
                "selector": {"name": "learned", "diversity": 0.0, "checkpoint": reference_part("pruner").name},
                "positions": "original",
            },
            {"kind": "prune_in_decoder", "layer": 0.6, "selector": "text_attention"},
        ],
    },
}

Floats = NDArray[np.float64]
Answered = tuple[list[tuple[int, ...]], Floats]
"""Token ids, and scores of 0 or 1."""


def bundle_of(name: str, work: Path) -> Path:
    """A recipe's bundle in every precision, exported if it is not there."""
    out = work / name.split(",")[0].lower()
    if not out.exists():
        adapter = load_adapter(reference_dir())
        digest = model_digest(adapter.path)
        recipe = Recipe.model_validate({"version": 1, "name": "study", **RECIPES[name]})
        recipe = recipe.with_source(RecipeSource(directory=reference_part("pruner").parent))
        model = apply_recipe(adapter, recipe, model_digest=digest)
        samples = samples_from(adapter, "reference", SAMPLES, seed=0)
        by = samples_from(adapter, "reference", CALIBRATION, seed=0)
        origin = Origin("reference", digest)
        with progress() as tell:
            export(ExportRequest([model], recipe, origin, samples, RUN, OPTIMISED, calibration=by, progress=tell), out)
    return out


def answer(bundle: Path, precision: str, items: Sequence[Item], backend: str = "onnxruntime") -> Answered:
    """Greedy answers to all questions, on the processor."""
    model = VLM.load(bundle, backend=backend, provider="cpu", precision=precision, verify=False)
    tokens: list[tuple[int, ...]] = []
    scores: list[float] = []
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        prompts = [model.chat(item.question) for item in batch]
        for item, said in zip(
            batch, model.generate([[item.load()] for item in batch], prompts, MAX_NEW_TOKENS), strict=True
        ):
            tokens.append(tuple(said.token_ids))
            scores.append(answer_score(said.text, item.answers))
    return tokens, np.array(scores)


def study(recipe: str, work: Path, count: int) -> dict[str, Any]:
    """All figures of a recipe, by precision."""
    items = load_dataset("reference", count, 0, "test").items
    images = [item.image_id for item in items]
    bundle = bundle_of(recipe, work)
    manifest = load_manifest(bundle, verify=False)
    plain: Answered | None = None
    found: dict[str, Any] = {}
    for precision in (*RUN, *OPTIMISED):
        tokens, scores = answer(bundle, precision if precision in OPTIMISED else precision + PORTABLE, items)
        plain = plain or (tokens, scores)
        equal = [a == b for a, b in zip(tokens, plain[0], strict=True)]
        found[precision] = row = {
            "accuracy": float(scores.mean()),
            "retention": float(scores.sum() / plain[1].sum()),
            "ci95": list(stats.ratio_interval(scores, plain[1], images, seed=0) or ()),
            "equal_answers": float(np.mean(equal)),
            "bytes": manifest.graph_bytes(precision),
            "parity": manifest.parity[precision],
        }
        print(recipe, precision, {key: row[key] for key in ("accuracy", "retention", "equal_answers")}, flush=True)
    return found


def _table(recipe: str) -> Any:
    def rows(results: Any) -> str:
        body = []
        for precision, row in results[recipe]["precisions"].items():
            low, high = row["ci95"]
            body.append(
                [
                    f"`{precision}`",
                    percent(row["accuracy"]),
                    percent(row["retention"]),
                    f"[{percent(low)}, {percent(high)}]",
                    percent(row["equal_answers"]),
                    f"{row['bytes'] / 1e6:.1f} MB",
                    f"{row['parity']['logits_max_diff']:.2g}",
                ]
            )
        head = ["precision", "accuracy", "of fp32's", "95 % interval", "equal answers", "graphs", "logits off by"]
        return table(head, body)

    return rows


TABLES = {key: (recipe, _table(recipe)) for key, recipe in zip(("none", "learnpruner"), RECIPES, strict=True)}


def main() -> None:
    """Measure, or only fill the tables from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--recipe", choices=list(RECIPES), action="append", help="measure this one only")
    parser.add_argument("--work", type=Path, help="where bundles are kept; made and forgotten without it")
    parser.add_argument("--tables", action="store_true", help="only fill the tables")
    asked = parser.parse_args()
    file = DOCS / "results" / "precision.json"
    for recipe in () if asked.tables else asked.recipe or RECIPES:
        with tempfile.TemporaryDirectory() as directory:
            found = study(recipe, asked.work or Path(directory), asked.questions)
        results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        results[recipe] = {"questions": asked.questions, "precisions": found}
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    fill_tables(DOCS / "precision.md", json.loads(file.read_text(encoding="utf-8")), TABLES)


if __name__ == "__main__":
    main()

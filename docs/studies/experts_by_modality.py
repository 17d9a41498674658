"""What experts by modality cost and save: ``python -m docs.studies.experts_by_modality --work DIR``.

The reference mixture answers questions of the test split with few experts for visual tokens, and with experts skipped
by modality; a wider model of random weights is exported with and without experts of visual tokens, and its forms are
asked in turns. Needs about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from docs.studies.experts import Mixture
from docs.studies.pages import Results, fill_tables, percent, points, table
from docs.studies.peers import environment
from vtc.calibrate.skipping import measure_skipping, skipping
from vtc.compressed.build import apply_recipe
from vtc.data.samples import samples_from
from vtc.models import load_adapter
from vtc.recipe import NONE, Recipe
from vtc.reference import reference_dir

DOCS = Path(__file__).resolve().parents[1]
DEFAULT, PAGE = DOCS / "results" / "experts_by_modality.json", DOCS / "experts.md"
DRAWS, STEPS, ROUNDS, UNTIMED = 4, 8, 9, 2
GRID, LAYERS, OWN = 17, 4, 2
SIZES: dict[str, Any] = {"width": 256, "heads": 4, "kv_heads": 2, "ffn": 512}
"""Of the wider model: 289 visual tokens, 4 layers of 8 experts, of which a token passes 2."""
RULES = ("reap", "frequency", "random")
SHARES, MEASURED_ON = (0.3, 0.5, 0.7), 32
"""Shares of expert calls to skip, and questions of the training split that thresholds are found and told on."""
BUNDLES = {"all": (), "own": ({"kind": "visual_experts", "experts": [list(range(OWN))] * LAYERS},)}
FORMS = {"portable": "fp32-portable", "`MoE` operator": "fp32-ort"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="A directory for the wider model and its bundles.")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--only", choices=("accuracy", "skipped", "times"), help="measure one part, keep the others")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(DEFAULT.read_text(encoding="utf-8")) if DEFAULT.exists() else {}
    results["machine"] = environment.machine()
    if options.only in (None, "accuracy"):
        results["accuracy"] = _accuracy(options.questions)
    if options.only in (None, "skipped"):
        results["skipped"] = _skipped(options.questions)
    if options.only in (None, "times"):
        results["times"] = _times(options.work)
    DEFAULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    fill_tables(PAGE, results, TABLES)


def _accuracy(count: int) -> dict[str, Any]:
    """Retention of the reference mixture with 2 and 4 of 8 experts for visual tokens, and ahead of chance."""
    mixture = Mixture(reference_dir("reference-moe"), count)
    questions = mixture.questions
    found: dict[str, Any] = {"questions": count, "original": float(questions.original.scores.mean())}
    for keep in (2, 4):
        stage = {"kind": "visual_experts", "keep": keep}
        answers = {rule: mixture.chosen(stage | {"score": rule}, DRAWS) for rule in RULES}
        rows = {rule: questions.retention(answer) for rule, answer in answers.items()}
        for rule in RULES[:-1]:
            rows[rule]["ahead"] = questions.ahead(answers[rule], answers["random"])
        found[str(keep)] = rows
    return found


def _skipped(count: int) -> dict[str, Any]:
    """Retention of the reference mixture at thresholds for some shares, and at one threshold of router weights."""
    mixture = Mixture(reference_dir("reference-moe"), count)
    questions = mixture.questions
    samples = samples_from(questions.adapter, "reference", MEASURED_ON, 0)
    model = questions.compressed(NONE)
    found: dict[str, Any] = {"questions": count, "measured_on": MEASURED_ON}
    for share in SHARES:
        report = measure_skipping(apply_recipe(questions.adapter, NONE), samples, share)
        level = _weight_level(apply_recipe(questions.adapter, NONE), samples, share)
        same = np.ones_like(report.importance), level, level
        ways = {
            "by modality": (report.importance, report.thresholds.text, report.thresholds.visual),
            "by router weight": same,
        }
        found[str(share)] = {"loss": report.loss, "thresholds": report.to_dict()["thresholds"]}
        for name, how in ways.items():
            with skipping(model) as state:
                state.by_thresholds(*how)
                answers = questions.run([model])
                found[str(share)][name] = questions.retention(answers) | {"skipped": state.share()._asdict()}
    return found


def _weight_level(model: Any, samples: Any, share: float) -> float:
    """The router weight below which a share of expert calls lies."""
    with skipping(model) as state, torch.inference_mode():
        state.counts = []
        model.prefill(*model.inputs([one.images for one in samples[:8]], [one.prompt for one in samples[:8]]))
        return float(np.quantile(torch.cat([weights.flatten() for weights, *_ in state.counts]).numpy(), share))


def _times(work: Path) -> dict[str, Any]:
    """Milliseconds of each bundle in each form, in turns, and what the plans count."""
    from PIL import Image

    from vtc.bundle.manifest import load_manifest
    from vtc.runtime.vlm import VLM

    if not (work / "own").exists():
        _export(work)
    models = {
        (name, form): VLM.load(work / name, precision=variant, threads=1)
        for name in BUNDLES
        for form, variant in FORMS.items()
    }
    size = models["all", "portable"].manifest.images[0].size
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    took: dict[tuple[str, str], list[Any]] = {key: [] for key in models}
    for _ in range(UNTIMED + ROUNDS):
        for key, model in models.items():
            text = model.chat("what digit is red ?")
            took[key].append(model.generate([[Image.fromarray(noise)]], [text], STEPS)[0].timings)
    return {
        f"{name}, {form}": {
            "prefill_ms": median(one.prefill_ms for one in timed[UNTIMED:]),
            "step_ms": median(step for one in timed[UNTIMED:] for step in one.step_ms),
            "tokens": timed[0].segment_lengths[0],
            "flops": load_manifest(work / name, verify=False).plan["flops"],
        }
        for (name, form), timed in took.items()
    }


def _export(work: Path) -> None:
    from exporters.onnx import ExportRequest, export
    from vtc.compressed.checkpoint import Origin
    from vtc.models.random.shapes import TINY_MIXTURE
    from vtc.models.random.tiny import write_tiny_llava

    wider = replace(TINY_MIXTURE, decoder=replace(TINY_MIXTURE.decoder, **SIZES))
    if not (work / "model").exists():
        write_tiny_llava(work / "model", grid=GRID, decoder_layers=LAYERS, like=wider)
    adapter = load_adapter(work / "model")
    for name, stages in BUNDLES.items():
        recipe = Recipe.model_validate({"version": 1, "name": name, "stages": list(stages)})
        samples = samples_from(adapter, None, 2, seed=0)
        request = ExportRequest([apply_recipe(adapter, recipe)], recipe, Origin("random", "0" * 64), samples)
        export(replace(request, optimised=("fp32-ort",)), work / name)


def _accuracy_table(results: Results) -> str:
    found = results["accuracy"]
    rows = []
    for rule in RULES:
        row = [rule if rule != "random" else f"random, mean of {DRAWS} draws"]
        for keep in ("2", "4"):
            one = found[keep][rule]
            low, high = one["ci95"]
            row.append(f"{percent(one['retention'])} [{percent(low)}, {percent(high)}]")
            row.append(points(one["ahead"]) if "ahead" in one else "")
        rows.append(row)
    head = ["chosen by", "2 of 8 for visual tokens: retention", "above random by, points"]
    return table([*head, "4 of 8: retention", "above random by, points"], rows)


def _skipped_table(results: Results) -> str:
    found, rows = results["skipped"], []
    for share in map(str, SHARES):
        for name in ("by modality", "by router weight"):
            one = found[share][name]
            low, high = one["ci95"]
            skipped = [percent(one["skipped"][kind]) for kind in ("all", "text", "visual")]
            rows.append([percent(float(share), 0), name, *skipped])
            rows[-1].append(f"{percent(one['retention'])} [{percent(low)}, {percent(high)}]")
    return table(["asked for", "thresholds", "skipped", "of text", "of visual", "retention"], rows, left=2)


def _times_table(results: Results) -> str:
    rows = []
    for form in FORMS:
        every, own = (results["times"][f"{name}, {form}"] for name in BUNDLES)
        counted = "executed" if form == "portable" else "routed"
        for name, one in ((f"{form}: all tokens by 8", every), (f"{form}: visual tokens by {OWN}", own)):
            flops = one["flops"][counted]
            rows.append(
                [
                    name,
                    f"{flops / 1e9:.2f} G",
                    f"{one['prefill_ms']:.1f}",
                    f"{every['prefill_ms'] / one['prefill_ms']:.2f}x",
                    f"{one['step_ms']:.2f}",
                ]
            )
    tokens = results["times"]["all, portable"]["tokens"]
    return table(["ONNX Runtime, 1 thread", "counted", f"prefill of {tokens} tokens, ms", "", "step, ms"], rows)


TABLES = {
    "visual_accuracy": ("accuracy", _accuracy_table),
    "visual_times": ("times", _times_table),
    "skipped": ("skipped", _skipped_table),
}

if __name__ == "__main__":
    main()

"""How a pruner is best trained: ``python -m docs.studies.training``, about half an hour on a core.

Every setting trains a pruner on the same images and is judged on the validation writers, never on the test split. What
this shows decided the defaults of `PrunerTraining`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from docs.studies.learnpruner import DOCS
from docs.studies.pages import fill_tables
from vtc.models import load_adapter, model_digest
from vtc.recipe.selectors.learned import LearnedEntry, PrunerTraining
from vtc.reference import reference_dir
from vtc.selectors.learned import Learned
from vtc.selectors.trained import load_trained, log_path
from vtc.training.evaluation import accuracy
from vtc.training.examples import EncodedExamples, load_examples
from vtc.training.trainer import Subject, train_pruner

KEEP = 14
BUDGETS = (8, 14, 24)
STEPS = 300
WATCHED = 8
"""Held-out images looked at while a pruner is trained; all are, afterwards."""
SETTINGS: dict[str, dict[str, Any]] = {
    "imitation of CLS attention alone": {"steps": 1, "learning_rate": 1e-9},
    "end to end alone, rate 0.003": {"imitation_steps": 0, "learning_rate": 0.003},
    "imitation, then end to end, rate 0.003": {"learning_rate": 0.003},
    "imitation, then end to end, rate 0.001 (default)": {},
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="to train on")
    parser.add_argument("--validation", type=int, default=200, help="to judge on")
    parser.add_argument("--work", type=Path, default=DOCS.parent / "out" / "studies" / "training")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    adapter = load_adapter(reference_dir())
    digest, layers = model_digest(adapter.path), tuple(range(adapter.facts.encoder.feature_layer + 1))
    data = load_examples(adapter, "reference", options.images, options.validation, seed=0)
    adapter.set_decoder_attention("grouped")
    train, held_out, few = (
        EncodedExamples(adapter, layers, data.beginning, examples, 2**33)
        for examples in (data.train, data.validation, data.validation[:WATCHED])
    )
    subject = Subject(adapter, digest, layers, KEEP, diversity=0.0)
    results: dict[str, Any] = {
        "images": len(data.train),
        "validation_images": len(data.validation),
        "steps": STEPS,
        "unpruned": accuracy(adapter, held_out, None, adapter.facts.visual_tokens),
        "settings": {},
    }
    for number, (name, changes) in enumerate(SETTINGS.items()):
        config = PrunerTraining(**{"steps": STEPS, "validation": 1, **changes})
        path = options.work / f"{number}.safetensors"
        train_pruner(subject, data, config, path, "reference", encoded=(train, few))
        adapter.set_decoder_attention("grouped")
        pruner = Learned.build(LearnedEntry(diversity=0.0), adapter.facts, layers)
        load_trained(path, pruner, digest)
        row = {str(keep): accuracy(adapter, held_out, pruner, keep) for keep in BUDGETS}
        with log_path(path).open(encoding="utf-8") as log:
            seconds = [float(line["seconds"]) for line in csv.DictReader(log)][-1]
        results["settings"][name] = row | {"seconds": round(seconds)}
        print(name, results["settings"][name], flush=True)
    (DOCS / "results" / "learnpruner-training.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    fill_tables(DOCS / "learnpruner.md", {"training": results})


if __name__ == "__main__":
    main()

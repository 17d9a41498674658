"""Everything that docs/learnpruner.md shows, measured on the reference VLM: ``python -m docs.studies.learnpruner``.

Trains pruners of three seeds (kept in ``out/studies``, so a second run is quick), answers the same questions of the
test split with every method at every budget, and writes ``docs/results/learnpruner.json``, the plots and the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from docs.studies import attention
from docs.studies.harness import BATCH, MAX_NEW_TOKENS, Answers, Questions
from docs.studies.pages import fill_tables
from docs.studies.plots import plot_budgets, plot_shift, plot_sweep, show_kept
from exporters.onnx import ExportRequest, export
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import Origin as CheckpointOrigin
from vtc.data.samples import samples_from
from vtc.evaluate.metrics import answer_score
from vtc.models import load_adapter, model_digest
from vtc.progress import progress
from vtc.recipe import Recipe, RecipeSource, load_recipe
from vtc.reference import reference_dir
from vtc.runtime.vlm import VLM
from vtc.training.auto import AutoTrained

DOCS = Path(__file__).resolve().parents[1]
SHARES = (0.5, 0.25, 0.11, 0.055, 0.028)
HEADLINE = 0.055
SEEDS = (0, 1, 2)
PARITY_SAMPLES = 8
RATIOS = (1.001, 2.0, 3.0, 4.0)
LEARNED = {"name": "learned", "diversity": 0.0}
VTC_CLS = {"name": "cls_attention", "last": 4}
TEXT_FREE = {"CLS attention": "cls_attention", "VTC-CLS": VTC_CLS, "random": "random", "uniform": "uniform"}
BASELINES = ("CLS attention", "VTC-CLS", "random", "uniform", "downsampling")


def limit_at(share: float) -> int | None:
    """Fewer questions where a budget is generous: they take long there, and nothing is close to the edge."""
    return 480 if share >= 0.25 else None


@dataclass(frozen=True)
class Study:
    """What all experiments share.

    Attributes
    ----------
    questions : Questions
    pruners : list of Path
        One checkpoint a seed.
    """

    questions: Questions
    pruners: Sequence[Path]

    def recipe(self, stages: list[dict[str, Any]], budget: dict[str, Any] | None = None, seed: int = 0) -> Recipe:
        """A recipe whose learned selectors read the checkpoint of a seed."""
        checkpoint = self.pruners[seed]
        for stage in stages:
            if isinstance(selector := stage.get("selector"), dict) and selector.get("name") == "learned":
                stage["selector"] = {**selector, "checkpoint": checkpoint.name}
        data: dict[str, Any] = {"version": 1, "name": "study", "stages": stages}
        if budget is not None:
            data["budget"] = budget
        return Recipe.model_validate(data).with_source(RecipeSource(directory=checkpoint.parent))

    def one_stage(self, selector: Any, share: float, seed: int = 0) -> Answers:
        """Prune before the decoder only."""
        stage = {"kind": "prune", "keep": share, "selector": selector, "positions": "original"}
        return self.questions.answer(self.recipe([stage], seed=seed), limit_at(share), kept=share == HEADLINE)

    def two_stages(self, pruner: Any, share: float, seed: int = 0, ratio: float | None = None, **cut: Any) -> Answers:
        """Prune before the decoder and, as the shipped recipe does or as `cut` says, inside it."""
        shipped = load_recipe("learnpruner").canonical()
        stages = [{**shipped["stages"][0], "selector": pruner}, {**shipped["stages"][1], **cut}]
        budget = {"keep_average": share, "ratio": ratio or shipped["budget"]["ratio"]}
        return self.questions.answer(self.recipe(stages, budget, seed), limit_at(share), kept=share == HEADLINE)


def trained_pruners(work: Path) -> list[Path]:
    """One pruner a seed: the shipped one for the first, newly trained ones for the others, unless they are there."""
    adapter = load_adapter(reference_dir())
    digest = model_digest(adapter.path)
    found = []
    with progress() as tell:
        for seed in SEEDS:
            overrides = [f"stages.0.selector.training={{seed: {seed}}}"]
            recipe = load_recipe("learnpruner-encoder", ["stages.0.selector={name: learned}", *overrides])
            directory = work / f"seed-{seed}"
            directory.mkdir(parents=True, exist_ok=True)
            auto = AutoTrained(adapter, digest, directory, "reference", retrain=seed != SEEDS[0], report=tell)
            found.append(auto(recipe, 0))
    return found


def budgets(study: Study) -> tuple[dict[str, Any], dict[str, list[Answers]]]:
    """Retention of every method at every budget; and all answers at the headline's, one list entry a seed."""
    found: dict[str, Any] = {}
    headline: dict[str, list[Answers]] = {}
    questions = study.questions
    for share in SHARES:
        answers = {
            "learned + text": [study.two_stages(LEARNED, share, seed) for seed in SEEDS],
            "learned": [study.one_stage(LEARNED, share, seed) for seed in SEEDS],
            "VTC-CLS + text": [study.two_stages(VTC_CLS, share)],
            **{name: [study.one_stage(selector, share)] for name, selector in TEXT_FREE.items()},
            "downsampling": [questions.baseline("downsample", round(share * 256), limit_at(share))],
        }
        found[str(share)] = {name: _over_seeds(questions, several) for name, several in answers.items()}
        if share == HEADLINE:
            headline = answers
        print(share, {name: round(row["retention"], 4) for name, row in found[str(share)].items()}, flush=True)
    return found, headline


def _over_seeds(questions: Questions, answers: Sequence[Answers]) -> dict[str, Any]:
    """Figures of the first seed, and the retention of each where there are several."""
    seeds = [questions.retention(one)["retention"] for one in answers]
    return questions.retention(answers[0]) | {"seeds": seeds, "mean": float(np.mean(seeds)), "spread": _spread(seeds)}


def _spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds, 0 for one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def headline_figures(questions: Questions, headline: dict[str, list[Answers]]) -> dict[str, Any]:
    """The headline in numbers: how far ahead of each rival, by capability, and what of the evidence is kept."""
    ours = headline["learned + text"][0]
    return {
        "ahead": {
            name: questions.ahead(ours, several[0]) for name, several in headline.items() if name != "learned + text"
        },
        "learned_ahead": {name: questions.ahead(headline["learned"][0], headline[name][0]) for name in BASELINES},
        "by_capability": {name: questions.by_capability(several[0]) for name, several in headline.items()},
        "evidence": {
            name: [{"tokens": kept.shape[1], **questions.evidence(kept)} for kept in several[0].kept]
            for name, several in headline.items()
        },
    }


def ablation(study: Study) -> dict[str, Any]:
    """Which part does what at the headline's budget; the paper's cut beside ours."""
    tenth = {"name": "learned", "diversity": 0.1}
    fifth = {"name": "learned", "diversity": 0.2}
    return {
        name: [_over_seeds(study.questions, [answers])["retention"] for answers in several]
        for name, several in {
            "pruner alone": [study.one_stage(LEARNED, HEADLINE, seed) for seed in SEEDS],
            "pruner, diversity 0.1": [study.one_stage(tenth, HEADLINE, seed) for seed in SEEDS],
            "pruner, diversity 0.2": [study.one_stage(fifth, HEADLINE, seed) for seed in SEEDS],
            "pruner + text (the recipe)": [study.two_stages(LEARNED, HEADLINE, seed) for seed in SEEDS],
            "pruner, diversity 0.1 + text": [study.two_stages(tenth, HEADLINE, seed) for seed in SEEDS],
            "as the authors: diversity 0.1, cut at 0.375 of the depth": [
                study.two_stages(tenth, HEADLINE, seed, layer=0.375) for seed in SEEDS
            ],
        }.items()
    }


def cuts(study: Study) -> dict[str, Any]:
    """Where to cut, who asks, and how the budget is divided, all at the headline's layer average."""
    layers = range(1, study.questions.adapter.facts.decoder.layers)

    def retained(**cut: Any) -> float:
        found: float = study.questions.retention(study.two_stages(LEARNED, HEADLINE, **cut))["retention"]
        return found

    return {
        "layer": {str(layer): retained(layer=layer) for layer in layers},
        "queries": {
            f"{queries}{'' if rope else ', no rope'}": {
                str(layer): retained(layer=layer, selector={"queries": queries, "rope": rope}) for layer in (2, 3, 4, 5)
            }
            for queries in ("text_after_image", "last_token", "raters")
            for rope in (True, False)
        },
        "ratio": {f"{ratio:.0f}": retained(ratio=ratio) for ratio in RATIOS},
    }


def exported(study: Study, work: Path) -> dict[str, Any]:
    """The shipped recipe as a bundle in ONNX Runtime, against PyTorch, on the same questions from pixels on."""
    questions = study.questions
    shipped = load_recipe("learnpruner").canonical()
    recipe = study.recipe([{**shipped["stages"][0], "selector": LEARNED}, shipped["stages"][1]], shipped["budget"])
    model = apply_recipe(questions.adapter, recipe, model_digest=questions.digest)
    samples = samples_from(questions.adapter, "reference", PARITY_SAMPLES, seed=0)
    export(ExportRequest([model], recipe, CheckpointOrigin("reference", questions.digest), samples), work / "bundle")
    bundle = VLM.load(work / "bundle")
    same, scores = [], []
    for first in range(0, len(questions.items), BATCH):
        items = questions.items[first : first + BATCH]
        asked = [[item.load()] for item in items], questions.prompts[first : first + BATCH]
        for item, ours, theirs in zip(
            items, model.generate(*asked, MAX_NEW_TOKENS), bundle.generate(*asked, MAX_NEW_TOKENS), strict=True
        ):
            same.append(list(ours.token_ids) == list(theirs.token_ids))
            scores.append([answer_score(answer.text, item.answers) for answer in (ours, theirs)])
    eager, onnx = np.mean(scores, axis=0)
    return {"equal_tokens": float(np.mean(same)), "accuracy_pytorch": float(eager), "accuracy_bundle": float(onnx)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=1200, help="questions of the test split, one an image")
    parser.add_argument("--seed", type=int, default=0, help="draws the questions")
    parser.add_argument("--work", type=Path, default=DOCS.parent / "out" / "studies", help="pruners of this study")
    options = parser.parse_args()
    study = Study(Questions(options.questions, options.seed), trained_pruners(options.work))
    table, headline = budgets(study)
    results: dict[str, Any] = {
        "questions": options.questions,
        "seed": options.seed,
        "original": float(study.questions.original.scores.mean()),
        "blind": study.questions.retention(study.questions.baseline("blind", 1)),
        "budgets": table,
        "headline": headline_figures(study.questions, headline),
        "ablation": ablation(study),
        "cuts": cuts(study),
        "exported": exported(study, options.work),
        "sweep": attention.layer_sweep(study.questions),
        "shift": attention.index_slopes(study.questions),
    }
    (DOCS / "results").mkdir(exist_ok=True)
    (DOCS / "results" / "learnpruner.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    figures = DOCS / "figures"
    plot_budgets(results, figures / "learnpruner-budgets.png")
    plot_sweep(results, figures / "learnpruner-layers.png")
    plot_shift(results, figures / "learnpruner-shift.png")
    show_kept(study.questions, headline, figures / "learnpruner-kept.png")
    fill_tables(DOCS / "learnpruner.md", results)


if __name__ == "__main__":
    main()

"""Everything that docs/experts.md shows of the reference mixtures: ``python -m docs.studies.experts``.

Trains the mixtures (kept in ``--work``, so that a second run goes on), answers the same questions of the test split
with each, drops and merges experts, places experts on devices and counts traffic in real processes. Writes
``docs/results/experts.json``, the figures and the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from docs.studies.expert_parallel import measured_placements
from docs.studies.expert_tables import TABLES
from docs.studies.harness import Answers, Questions
from docs.studies.pages import fill_tables
from docs.studies.peers import environment
from vtc.calibrate.calibrator import Calibrator
from vtc.calibrate.measurements import Measurements
from vtc.data.samples import samples_from
from vtc.evaluate import stats
from vtc.experts.picture import draw_experts
from vtc.experts.placing import compare
from vtc.experts.specialisation import modality_bins, specialisation_index, visual_share
from vtc.experts.statistics import TEXT, ExpertUse
from vtc.experts.workload import ExpertLayer
from vtc.models.routers import router_and_experts
from vtc.progress import progress
from vtc.recipe import NONE, Recipe
from vtc.recipe.experts import ExpertPlacement
from vtc.reference import reference_dir
from vtc.reference.training.experts import ExpertConfig, Scores, train

DOCS = Path(__file__).resolve().parents[1]
PLAIN, SHIPPED = "load balance alone", "SMoES, attention"
SEEDS = (17, 18, 19)
"""Each deals out units, draws routers and orders questions anew; both trainings of a seed begin alike."""
ARMS: dict[str, tuple[Scores, tuple[int, ...]]] = {
    PLAIN: ("none", SEEDS),
    SHIPPED: ("attention", SEEDS),
    "SMoES, Gaussian": ("gaussian", SEEDS[:1]),
}
"""Trainings: soft scores, and seeds. What is told of one mixture is told of the first."""
MEASURED_ON = 128
"""Questions of the training split that expert statistics are of."""
RANDOM_DRAWS = 2
"""Of each mixture."""
AWARE, PLAIN_REAP, CHANCE, MERGED = "REAP, modality-aware", "REAP", "random", "merged by output (HC-SMoE)"
HALF: dict[str, dict[str, Any]] = {
    AWARE: {"score": "reap", "modality": "aware"},
    PLAIN_REAP: {"score": "reap", "modality": "both"},
    "frequency, modality-aware": {"score": "frequency", "modality": "aware"},
    "frequency": {"score": "frequency", "modality": "both"},
    "NAEE": {"score": "naee"},
    CHANCE: {"score": "random"},
}


@dataclass
class Mixture:
    """A mixture, and the test questions that it answers.

    Attributes
    ----------
    path : Path
    count : int
        Questions.
    """

    path: Path
    count: int

    @cached_property
    def questions(self) -> Questions:
        """Of the test split, one an image."""
        return Questions(self.count, 0, model=self.path)

    @property
    def experts(self) -> list[ExpertLayer]:
        """Of each layer."""
        found = [router_and_experts(layer) for layer in self.questions.adapter.decoder_layers]
        return [ExpertLayer(both[1].gate_up_proj, both[1].down_proj) for both in found if both is not None]

    @cached_property
    def calibrator(self) -> Calibrator:
        """Chooses on the training split; what it has measured serves all recipes."""
        samples = samples_from(self.questions.adapter, "reference", MEASURED_ON, 0)
        return Calibrator(self.questions.adapter, samples, Measurements(), self.questions.digest)

    @property
    def use(self) -> ExpertUse:
        """Its experts' use on the training split."""
        return self.calibrator.measuring.experts(NONE)

    def answer(self, stage: dict[str, Any]) -> Answers:
        """Answers with a stage; what it leaves open is chosen on the training split."""
        recipe = Recipe.model_validate({"version": 1, "name": "study", "stages": [stage]})
        return self.questions.answer(self.calibrator.resolve(recipe))

    def chosen(self, stage: dict[str, Any], draws: int) -> Answers:
        """Answers with a stage that chooses experts by its score; by chance, the mean of so many draws."""
        seeds = range(draws if stage["score"] == "random" else 1)
        drawn = [self.answer(stage | {"seed": seed}) for seed in seeds]
        return replace(drawn[0], scores=np.mean([one.scores for one in drawn], axis=0))


def trained(trainings: dict[str, list[Mixture]], dense: Questions) -> dict[str, Any]:
    """Accuracy of each training, paired with load balance alone of the same seeds, and specialisation by layer."""
    rivals = np.stack([one.questions.original.scores for one in trainings[PLAIN]])
    rows: dict[str, Any] = {"dense reference": {"accuracy": float(dense.original.scores.mean())}}
    for name, mixtures in trainings.items():
        scores = np.stack([one.questions.original.scores for one in mixtures])
        ahead = scores - rivals[: len(scores)]
        rows[name] = {
            "questions": scores.shape[1],
            "accuracy": float(scores.mean()),
            "by_seed": scores.mean(axis=1).tolist(),
            "difference": float(ahead.mean()),
            "ci95": list(stats.mean_interval(ahead.mean(axis=0), dense.images, seed=0) or ()),
            "ahead_by_seed": ahead.mean(axis=1).tolist(),
        }
        rows[name] |= specialised(mixtures[0].use)
    return rows


def specialised(use: ExpertUse) -> dict[str, Any]:
    """Specialisation by layer, and what goes with it."""
    bins = modality_bins(visual_share(use.chosen), ExpertConfig().bins)
    load = use.chosen.sum(axis=1)
    forms = {"attention": use.attention, "gaussian": use.gaussian}
    soft = {name: scores[:, TEXT].sum(axis=1) / (use.active * use.tokens[TEXT]) for name, scores in forms.items()}
    return {
        "specialisation": specialisation_index(use.chosen).tolist(),
        "specialisation_of_bins": specialisation_index(use.chosen, bins).tolist(),
        "load_max_over_mean": (load.max(axis=1) / load.mean(axis=1)).tolist(),
        "soft_text_of_a_text_token": {name: share.tolist() for name, share in soft.items()},
    }


def placed(mixtures: dict[str, Mixture], prompts: Sequence[int], repeats: int) -> dict[str, Any]:
    """Traffic and load of each placement on 2 and 4 devices: counted of all mixtures, run by real processes of two."""
    found: dict[str, Any] = {}
    for name, mixture in mixtures.items():
        found[name] = {}
        for devices in (2, 4):
            wanted = ExpertPlacement(devices=devices)
            counted = {
                f"{method} / {homes}": {part: asdict(getattr(row, part)) for part in ("all", "text", "visual")}
                for method, homes, row in compare(mixture.use, wanted)
            }
            found[name][str(devices)] = {"counted": counted}
            if name in (PLAIN, SHIPPED):
                measured = measured_placements(mixture.use, mixture.experts, devices, prompts, repeats)
                found[name][str(devices)]["measured"] = measured
    return found


def fewer(mixtures: Sequence[Mixture]) -> dict[str, Any]:
    """Retention with a half, a quarter and three quarters of the experts: dropped by each score, or merged."""
    images = mixtures[0].questions.images * len(mixtures)
    original = _together([one.questions.original for one in mixtures])

    def pruned(keep: float, name: str) -> NDArray[np.float64]:
        stage = {"kind": "prune_experts", "keep": keep, **HALF[name]}
        return _together([one.chosen(stage, RANDOM_DRAWS) for one in mixtures])

    def merged(keep: float) -> dict[str, Any]:
        return retention(_together([one.answer({"kind": "merge_experts", "keep": keep}) for one in mixtures]))

    def retention(scores: NDArray[np.float64]) -> dict[str, Any]:
        by_seed = scores.reshape(len(mixtures), -1).sum(axis=1) / original.reshape(len(mixtures), -1).sum(axis=1)
        interval = list(stats.ratio_interval(scores, original, images, seed=0) or ())
        return {"retention": float(scores.sum() / original.sum()), "ci95": interval, "by_seed": by_seed.tolist()}

    half = {name: pruned(0.5, name) for name in HALF}
    rows = {name: retention(scores) for name, scores in half.items()}
    for name in rows:
        if name != AWARE:
            ahead = half[AWARE] - half[name]
            interval = list(stats.mean_interval(ahead, images, seed=0) or ())
            rows[name]["behind"] = {"difference": float(ahead.mean()), "ci95": interval}
    return {
        "half": rows | {MERGED: merged(0.5)},
        "two": {name: retention(pruned(0.25, name)) for name in (AWARE, PLAIN_REAP, CHANCE)},
        "quarter": {name: retention(pruned(0.75, name)) for name in (AWARE, PLAIN_REAP)} | {MERGED: merged(0.75)},
    }


def _together(answers: Sequence[Answers]) -> NDArray[np.float64]:
    """Scores of all questions, mixture by mixture."""
    return np.concatenate([one.scores for one in answers])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure what docs/experts.md shows.")
    parser.add_argument("--work", type=Path, default=Path("out/experts"), help="trained mixtures")
    parser.add_argument("--no-train", action="store_true", help="all mixtures are there")
    parser.add_argument("--questions", type=int, default=2400, help="that mixtures answer as they are")
    parser.add_argument("--fewer-questions", type=int, default=500, help="that they answer with fewer experts")
    parser.add_argument("--prompts", type=int, nargs="+", default=[24, 48], help="at once, in expert-parallel runs")
    parser.add_argument("--repeats", type=int, default=11, help="timed runs of each placement")
    parser.add_argument("--only", choices=("trained", "placed", "fewer"), help="measure one part, keep the others")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    trainings: dict[str, list[Mixture]] = {}
    for name, (scores, seeds) in ARMS.items():
        trainings[name] = []
        for seed in seeds:
            path = options.work / f"{scores}-{seed}"
            if not options.no_train:
                train(ExpertConfig(scores=scores, seed=seed), path, path.with_name(f"{path.name}.work"))
            trainings[name].append(Mixture(path, options.questions))
    mixtures = {name: of_seeds[0] for name, of_seeds in trainings.items()}
    file = DOCS / "results" / "experts.json"
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    results |= {"machine": environment.machine(), "training": asdict(ExpertConfig())}
    with progress():
        if options.only in (None, "trained"):
            results["trained"] = trained(trainings, Questions(options.questions, 0, model=reference_dir()))
        if options.only in (None, "placed"):
            results["placed"] = placed(mixtures, options.prompts, options.repeats)
        if options.only in (None, "fewer"):
            for name in (PLAIN, SHIPPED):
                some = [Mixture(one.path, options.fewer_questions) for one in trainings[name]]
                results.setdefault("fewer", {})[name] = fewer(some)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name in (PLAIN, SHIPPED):
        draw_experts(mixtures[name].use).save(DOCS / "figures" / f"experts_{ARMS[name][0]}.png")
    fill_tables(DOCS / "experts.md", results, TABLES)


if __name__ == "__main__":
    main()

"""What asking an uncertain bundle again is worth: ``python -m docs.studies.adaptive BUNDLE``, minutes on a core.

BUNDLE is of the reference model and has several budgets. Every question is asked at every budget, so that each policy
is judged on the same answers. Thresholds come from validation writers, and are judged on test writers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from docs.studies.pages import Results, fill_tables, percent, table
from vtc.data.datasets import Item, Split, load_dataset
from vtc.evaluate.metrics import answer_score
from vtc.runtime.sampling import Sampler
from vtc.runtime.vlm import VLM

Floats = NDArray[np.float64]
DOCS = Path(__file__).resolve().parents[1]
SHARES = (0.5, 0.25, 0.1)
"""Shares of the validation questions that a threshold sends on from the smallest budget."""
MAX_NEW_TOKENS = 6


@dataclass(frozen=True)
class Asked:
    """What n questions came to at each of m budgets, ascending.

    Attributes
    ----------
    budgets : tuple of int
    right, entropy, ms : arrays of shape (n, m)
        Score of the answer, entropy of its first token in nats, and time of prefill and answer in milliseconds.
    prefill_ms : array of shape (n, m)
        Time to the first token, all that a pass that is given up costs.
    """

    budgets: tuple[int, ...]
    right: Floats
    entropy: Floats
    ms: Floats
    prefill_ms: Floats

    def fixed(self, place: int) -> dict[str, float]:
        """One budget for all."""
        return self._row(np.full(len(self.right), place), np.full(len(self.right), place))

    def climbing(self, threshold: float) -> dict[str, float]:
        """From the smallest budget up, as long as the first token's entropy is above a threshold."""
        sure = self.entropy <= threshold
        sure[:, -1] = True
        return {"threshold": threshold, **self._row(np.zeros(len(sure), dtype=int), sure.argmax(axis=1))}

    def oracle(self) -> dict[str, float]:
        """The smallest budget that is right; the smallest of all where none is. Its time is that of this one alone."""
        best = (self.right >= 1).argmax(axis=1)
        return self._row(best, best)

    def _row(self, first: NDArray[Any], last: NDArray[Any]) -> dict[str, float]:
        rows, places = np.arange(len(last)), np.arange(len(self.budgets))
        passes = (places >= first[:, None]) & (places <= last[:, None])
        given_up = np.where(passes & (places < last[:, None]), self.prefill_ms, 0).sum(axis=1)
        ms = self.ms[rows, last] + given_up
        return {
            "entering": float(np.asarray(self.budgets)[last].mean()),
            "prefilled": float((passes * np.asarray(self.budgets)).sum(axis=1).mean()),
            "passes": float(passes.sum(axis=1).mean()),
            "accuracy": float(self.right[rows, last].mean()),
            "p50_ms": float(np.quantile(ms, 0.5)),
            "p95_ms": float(np.quantile(ms, 0.95)),
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--validation", type=int, default=150)
    options = parser.parse_args()
    model = VLM.load(options.bundle, threads=1)
    results = {
        "recipe": model.manifest.recipe["name"],
        "selector": model.manifest.recipe["stages"][0]["selector"]["name"],
        "run_as": model.run_as,
        **study(model, _items(options.validation, "validation"), _items(options.questions, "test")),
    }
    (DOCS / "results" / "adaptive.json").write_text(json.dumps({"adaptive": results}, indent=2) + "\n")
    fill_tables(DOCS / "adaptive.md", {"adaptive": results}, TABLES)


def study(model: VLM, validation: Sequence[Item], test: Sequence[Item]) -> dict[str, Any]:
    """Ask all questions, choose thresholds on some and judge them on the others."""
    certain = ask(model, validation).entropy[:, 0]
    asked = ask(model, test)
    thresholds = [float(np.quantile(certain, 1 - share)) for share in SHARES]
    climbing = [asked.climbing(threshold) for threshold in thresholds]
    fixed = {str(keep): asked.fixed(place) for place, keep in enumerate(asked.budgets)}
    return {
        "questions": len(test),
        "fixed": fixed,
        "entropy": climbing,
        "oracle": asked.oracle(),
        "repeats": {
            str(keep): any_right(model, test, keep, asked.right[:, place], len(asked.budgets))
            for place, keep in enumerate(asked.budgets)
        },
    }


def ask(model: VLM, items: Sequence[Item]) -> Asked:
    """Ask every question at every budget, one at a time and in turns."""
    views = [model.at_budget(keep) for keep in model.budgets]
    found = np.asarray([[_ask(view, item) for view in views] for item in items])
    return Asked(model.budgets, *np.moveaxis(found, 2, 0))


def _ask(model: VLM, item: Item) -> tuple[float, float, float, float]:
    running = model.start([[item.load()]], [model.chat(item.question)], MAX_NEW_TOKENS)
    answer = running.finish()[0]
    timings = answer.timings
    whole = timings.ttft_ms + sum(timings.step_ms)
    return answer_score(answer.text, item.answers), running.entropies[0], whole, timings.ttft_ms


def any_right(model: VLM, items: Sequence[Item], keep: int, greedy: Floats, draws: int) -> float:
    """Share of questions to which one of some answers at one budget is right: the greedy one, the others drawn.

    What an oracle over as many budgets gets by luck alone.
    """
    view = model.at_budget(keep)
    right = greedy >= 1
    for number, item in enumerate(items):
        image, prompt = [item.load()], view.chat(item.question)
        for seed in range(draws - 1):
            drawn = view.generate([image], [prompt], MAX_NEW_TOKENS, Sampler(temperature=1.0, seed=seed))[0].text
            right[number] |= answer_score(drawn, item.answers) >= 1
    return float(right.mean())


def _items(count: int, split: Split) -> Sequence[Item]:
    return load_dataset("reference", count, seed=0, split=split).items


def _table(results: Results) -> str:
    found = results["adaptive"]

    def row(name: str, one: dict[str, float], timed: bool = True) -> list[str]:
        times = [f"{one['p50_ms']:.1f}", f"{one['p95_ms']:.1f}"] if timed else ["", ""]
        return [name, f"{one['entering']:.1f}", f"{one['prefilled']:.1f}", percent(one["accuracy"]), *times]

    rows = [row(f"fixed, {keep}", one) for keep, one in found["fixed"].items()]
    rows += [row(f"entropy above {one['threshold']:.3f}", one) for one in found["entropy"]]
    rows.append(row("oracle: smallest budget that is right", found["oracle"], timed=False))
    name = f"any of {len(found['fixed'])} answers at one budget, the first greedy, the others drawn"
    rows += [[f"{name}: {keep}", keep, "", percent(one), "", ""] for keep, one in found["repeats"].items()]
    head = ["policy", "tokens that answered", "tokens of all passes", "accuracy", "p50 ms", "p95 ms"]
    return table(head, rows)


TABLES = {"adaptive": ("adaptive", _table)}


if __name__ == "__main__":
    main()

"""Everything that docs/selectors.md shows, measured on the reference VLM: ``python -m docs.studies.selectors``.

Answers the same questions of the test split with every selector at every budget, exports each selector as a graph of
its own to count and time it, and writes ``docs/results/selectors.json``, the plot and the tables.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from docs.studies.harness import Answers, Questions
from docs.studies.learnpruner import limit_at
from docs.studies.pages import fill_tables
from docs.studies.plots import plot_selectors
from docs.studies.selector_tables import BEFORE, CUT_BEFORE, INSIDE, KEEPS, SHARES, TABLES
from exporters.graph_spec import GraphSpec
from exporters.graphs import prune_spec, selection_spec
from exporters.onnx import ExportRequest, export
from exporters.writing import export_graph
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import Origin
from vtc.compressed.selection import Selection
from vtc.data.samples import samples_from
from vtc.inputs.schedule import SegmentRule, schedule
from vtc.recipe import Recipe, RecipeSource
from vtc.reference import reference_part
from vtc.runtime.onnxruntime.graph import Graph
from vtc.runtime.onnxruntime.providers import choose_provider
from vtc.runtime.vlm import VLM
from vtc.stages.prune_in_decoder import PruneInDecoder

DOCS = Path(__file__).resolve().parents[1]
TEXT_TOKENS = 24
RUNS, WARM_UP = 60, 10
BUNDLE_RUNS = 40


def before(selector: Any, keep: float) -> dict[str, Any]:
    """Stage of a selector before the decoder."""
    return {"kind": "prune", "keep": keep, "selector": selector, "positions": "original"}


def inside(selector: Any, keep: float) -> dict[str, Any]:
    """Stage of a selector inside the decoder; the trained one reads the first layer, which it was trained on."""
    layer = 1 if isinstance(selector, dict) and selector["name"] == "relevance" else CUT_BEFORE
    return {"kind": "prune_in_decoder", "layer": layer, "keep": keep, "selector": selector}


def recipe_of(stage: dict[str, Any]) -> Recipe:
    """A recipe of one stage."""
    recipe = Recipe.model_validate({"version": 1, "name": "study", "stages": [stage]})
    return recipe.with_source(RecipeSource(directory=reference_part("pruner").parent))


# Retention ----------------------------------------------------------------------------------------------------------


def retentions(questions: Questions, ask: Callable[[Any, float], Answers], methods: Mapping[str, Any]) -> Any:
    """Retention of every method at every budget, and how far it is from the same share of random tokens."""
    found: dict[str, Any] = {}
    for share in SHARES:
        rival = ask(methods["random"], share) if "random" in methods else None
        for name, selector in methods.items():
            answers = ask(selector, share)
            row = questions.retention(answers)
            if rival is not None and name != "random":
                row["ahead_of_random"] = questions.ahead(answers, rival)
            found.setdefault(name, {})[str(share)] = row
        print(share, {name: round(rows[str(share)]["retention"], 3) for name, rows in found.items()}, flush=True)
    return found


def accuracy(questions: Questions) -> dict[str, Any]:
    """What the original answers, and what every selector and baseline keeps of that."""
    total = questions.adapter.facts.visual_tokens

    def ask(make: Any) -> Callable[[Any, float], Answers]:
        return lambda selector, share: questions.answer(recipe_of(make(selector, share)), limit_at(share))

    found = retentions(questions, ask(before), BEFORE)
    found["downsampling"] = {
        str(share): questions.retention(questions.baseline("downsample", round(share * total), limit_at(share)))
        for share in SHARES
    }
    return {
        "original": float(questions.original.scores.mean()),
        "blind": questions.retention(questions.baseline("blind", 1)),
        "before": found,
        "inside": retentions(questions, ask(inside), INSIDE),
    }


# Cost ---------------------------------------------------------------------------------------------------------------


def costs(questions: Questions, work: Path) -> dict[str, Any]:
    """Nodes and microseconds of each selector's own graph on one image, and its share of the time to the first token.

    The time of the whole is that of a bundle with the same budget, whose own selection is taken out.
    """
    found: dict[str, Any] = {}
    for keep in KEEPS:
        whole = _bundle_ms(questions, before("uniform", keep), work)
        whole_inside = _bundle_ms(questions, inside("text_attention", keep), work)
        for name, selector in BEFORE.items():
            model = apply_recipe(questions.adapter, recipe_of(before(selector, keep)), model_digest=questions.digest)
            spec = selection_spec(Selection(model.vision), 1)
            found.setdefault(name, {})[str(keep)] = _cost(spec, spec.args, whole, work)
        for name, selector in INSIDE.items():
            model = apply_recipe(questions.adapter, recipe_of(inside(selector, keep)), model_digest=questions.digest)
            stage: Any = model.handoffs[1]
            spec = prune_spec("token_selector", stage, questions.adapter.facts.decoder.width, torch.float32)
            args = _cut_inputs(questions, stage, model.query_tokens[1])
            found.setdefault(name, {})[str(keep)] = _cost(spec, args, whole_inside, work)
        print(keep, {name: (rows[str(keep)]["nodes"], round(rows[str(keep)]["us"])) for name, rows in found.items()})
    return found


def _cost(spec: GraphSpec, args: Any, whole_ms: float, work: Path) -> dict[str, Any]:
    path = work / "selection.onnx"
    export_graph(spec, path)
    graph = Graph(path, choose_provider("cpu"), 1)
    feeds = {name: tensor.numpy() for name, tensor in zip(spec.inputs, args, strict=True)}
    feeds = {name: feeds[name] for name in graph.inputs}
    taken = []
    for _ in range(WARM_UP + RUNS):
        graph.run(feeds, host=graph.outputs)
        taken.append(graph.run_ms)
    milliseconds = float(np.median(taken[WARM_UP:]))
    nodes = len(onnx.load(path, load_external_data=False).graph.node)
    return {"nodes": nodes, "us": 1000 * milliseconds, "share": milliseconds / (milliseconds + whole_ms)}


def _cut_inputs(questions: Questions, stage: PruneInDecoder, query_tokens: str) -> list[torch.Tensor]:
    """One prompt: two words, the image, a question."""
    length = 2 + stage.tokens + TEXT_TOKENS
    ids = np.zeros((1, length), dtype=np.int64)
    ids[:, 2 : 2 + stage.tokens] = 1
    (pruned,) = schedule(ids, np.ones_like(ids), 1, stage.tokens, [SegmentRule("prune", stage.keep, query_tokens)])
    hidden = torch.randn(1, length, questions.adapter.facts.decoder.width)
    whole = [torch.ones(1, length, dtype=torch.long), torch.arange(length)[None]]
    before = [hidden.clone()] if stage.selector.entry.reads_before else []
    return [hidden, *whole, *map(torch.from_numpy, pruned.handoff_inputs), *before]


def _bundle_ms(questions: Questions, stage: dict[str, Any], work: Path) -> float:
    """Milliseconds from pixels to the first token's logits in a bundle, one thread, without its token selector."""
    recipe = recipe_of(stage)
    model = apply_recipe(questions.adapter, recipe, model_digest=questions.digest)
    samples = samples_from(questions.adapter, "reference", 2, seed=0)
    export(ExportRequest([model], recipe, Origin("reference", questions.digest), samples), work / "bundle")
    bundle = VLM.load(work / "bundle", threads=1)
    item = questions.items[0]
    _, batch = bundle.inputs([[item.load()]], [questions.prompts[0]])
    taken = []
    for _ in range(WARM_UP + BUNDLE_RUNS):
        begin = time.perf_counter()
        bundle.prefill(batch)
        selection = sum(graph.run_ms for graph in bundle.decoder.selectors)
        taken.append(1000 * (time.perf_counter() - begin) - selection)
    return float(np.median(taken[WARM_UP:]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=1200, help="questions of the test split, one an image")
    parser.add_argument("--seed", type=int, default=0, help="draws the questions")
    parser.add_argument("--only", choices=["accuracy", "cost"], help="measure one part, take the other as it is")
    options = parser.parse_args()
    questions = Questions(options.questions, options.seed)
    path = DOCS / "results" / "selectors.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if options.only else {}
    if options.only != "cost":
        results |= accuracy(questions) | {"questions": options.questions, "seed": options.seed}
    if options.only != "accuracy":
        with tempfile.TemporaryDirectory() as work:
            results["cost"] = costs(questions, Path(work))
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot_selectors(results, DOCS / "figures" / "selectors.png")
    fill_tables(DOCS / "selectors.md", results, TABLES)


if __name__ == "__main__":
    main()

"""Time against tokens, beside what exact FLOPs predict: ``python -m docs.studies.scaling --work DIR``.

The decoder of a 0.5B shape with random weights, prefill and one more token: with more and more visual tokens beside a
short text, and with more and more text beside few visual tokens. Writes ``docs/results/scaling.json``, the plot and the
table of ``docs/performance.md``. With the directory of :mod:`docs.studies.peers` its bundle is used.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from docs.studies.pages import Results, Tables, fill_tables, table
from docs.studies.peers import environment
from docs.studies.peers.contestants import Step
from docs.studies.peers.rounds import Failed, Processes, summary, tell
from docs.studies.peers.settings import SHAPE, Settings
from vtc.bundle.manifest import load_manifest
from vtc.models.random.weights import facts_of
from vtc.plan.flops import decoder_flops, head_flops
from vtc.runtime.backends import open_backend
from vtc.runtime.generation import milliseconds_since
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.vlm import VLM

DOCS = Path(__file__).resolve().parents[1]
FEW = 32
VISUAL = (32, 64, 128, 192, 256, 384, 512, 729, 1024, 1440, 2048, 2880)
TEXT = (32, 64, 128, 256, 512, 1024, 2048)
VARIANTS = ("fp32-ort", "q4-ort")
STEPS: tuple[Step, ...] = (("models",), ("bundle", "none"))
NEW_TOKENS = 8
PLOT = "scaling.png"
IDS = (10, 400)
"""Token ids that are text, of the reference tokenizer."""


@dataclass(frozen=True)
class Point:
    """A prompt: which of its two parts grows, and how many tokens each has."""

    grows: str
    visual: int
    text: int

    @property
    def tokens(self) -> int:
        """Of the whole prompt."""
        return self.visual + self.text


def points(most: int = 0) -> list[Point]:
    """All prompts of up to `most` tokens; 0 sets no limit."""
    every = [Point("visual", count, FEW) for count in VISUAL] + [Point("text", FEW, count) for count in TEXT]
    return [point for point in every if not most or point.tokens <= most]


def decoder_of(bundle: Path, options: RuntimeOptions) -> VLM:
    """A bundle of which nothing but decoder and embedding is loaded."""
    manifest = load_manifest(bundle, verify=False)
    vlm = VLM(manifest, open_backend(manifest, options))
    _ = vlm.embedding, vlm.decoder
    return vlm


def timed(vlm: VLM, point: Point, number: int) -> tuple[float, float]:
    """Milliseconds of a prefill and of a further token.

    Visual tokens are features of unit scale, placed before the text's embeddings; the decoder's graph knows no
    difference between the two.
    """
    random = np.random.default_rng(number)
    ids = random.integers(*IDS, (1, point.tokens))
    served = vlm.manifest.images[0]
    begin = time.perf_counter()
    text = vlm.embedding.run({"input_ids": ids[:, : point.text]})[0].numpy()
    features: NDArray[Any] = random.standard_normal((1, point.visual, text.shape[-1])).astype(text.dtype)
    embeds = np.concatenate([features, text], axis=1)
    none = np.zeros((0, served.keep_per_span), dtype=np.int64)
    logits, cache = vlm.decoder.prefill(embeds, ids, np.ones_like(ids), none, served, None, NEW_TOKENS)
    prefill_ms = milliseconds_since(begin)
    steps = []
    for _ in range(NEW_TOKENS - 1):
        begin = time.perf_counter()
        logits = vlm.step(logits.argmax(axis=-1), cache)
        steps.append(milliseconds_since(begin))
    return prefill_ms, statistics.fmean(steps)


def measure(models: dict[str, VLM], prompts: Sequence[Point], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Every variant at every prompt, in turns, in the other direction each round; a first round does not count."""
    found: dict[tuple[str, Point], list[tuple[float, float]]] = {(n, p): [] for n in models for p in prompts}
    for turn in range(rounds + 1):
        tell(f"round {turn} of {rounds}" if turn else "warming up")
        order = list(found) if turn % 2 else list(reversed(found))
        for name, point in order:
            told = timed(models[name], point, turn)
            if turn:
                found[name, point].append(told)
    return {
        name: [
            {
                "grows": point.grows,
                "visual": point.visual,
                "text": point.text,
                "prefill": summary([prefill for prefill, _ in found[name, point]]),
                "token": summary([token for _, token in found[name, point]]),
            }
            for point in prompts
        ]
        for name in models
    }


def predicted(settings: Settings, prompts: Sequence[Point]) -> list[dict[str, int]]:
    """Exact operations of each prefill, head included, and those of them that grow with the square of its tokens."""
    decoder = facts_of(settings.shape).decoder
    query = decoder.heads * decoder.head_dim
    return [
        {
            "tokens": point.tokens,
            "flops": decoder_flops(decoder, [point.tokens] * decoder.layers) + head_flops(decoder),
            "square": 4 * decoder.layers * point.tokens**2 * query,
        }
        for point in prompts
    ]


def rate(results: Results, variant: str) -> float:
    """Operations a millisecond where a variant's prefill has most of them: the rate of its FLOP line."""
    rows = zip(results["predicted"], results["variants"][variant], strict=True)
    return max(float(work["flops"] / row["prefill"]["median"]) for work, row in rows)


def scaling_table(results: Results) -> str:
    """A row for each number of visual tokens."""
    variants = list(results["variants"])
    rates = {name: rate(results, name) for name in variants}
    body = []
    for place, work in enumerate(results["predicted"]):
        row = results["variants"][variants[0]][place]
        if row["grows"] != "visual":
            continue
        cells = [f"{row['visual']:,}", f"{work['flops'] / 1e9:,.0f}", f"{100 * work['square'] / work['flops']:.0f} %"]
        for name in variants:
            one = results["variants"][name][place]
            took, line = one["prefill"]["median"], work["flops"] / rates[name]
            cells += [f"{took:,.0f}", f"{took / line:.2f}", f"{one['token']['median']:,.1f}"]
        body.append(cells)
    heads = [f"{name}: {what}" for name in variants for what in ("prefill, ms", "/ FLOP line", "a token, ms")]
    return table(["visual tokens", "GFLOPs", "of them n²", *heads], body, left=0)


def _with_plot(results: Results) -> str:
    return f"![Time against tokens](figures/{PLOT})\n\n{scaling_table(results)}"


TABLES: Tables = {"scaling": ("variants", _with_plot)}


def main() -> None:
    """Measure, or only draw what was measured."""
    parser = argparse.ArgumentParser(prog="python -m docs.studies.scaling", description=__doc__)
    parser.add_argument("--work", type=Path, help="where checkpoint and bundle are kept")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers, to try it out; results are not published")
    parser.add_argument("--vocabulary", type=int, default=0, help="fewer words; the same")
    parser.add_argument("--most", type=int, default=0, help="prompts of this many tokens at most; the same")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spin", action="store_true", help="threads wait busily, as on a machine of one's own")
    parser.add_argument("--variant", action="append", help="other than " + ", ".join(VARIANTS))
    parser.add_argument("--draw", action="store_true", help="only draw the plot and fill the table")
    asked = parser.parse_args()
    file = DOCS / "results" / "scaling.json"
    plot = DOCS / "figures" / PLOT
    if asked.draw:
        results = json.loads(file.read_text(encoding="utf-8"))
    elif asked.work is None:
        parser.error("--work is needed: the bundle takes gigabytes and many minutes, and is kept")
    else:
        work = asked.work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        settings = Settings(work, asked.layers, asked.vocabulary, threads=asked.threads)
        results = study(settings, asked)
        if settings.reduced or asked.most:
            file, plot = work / "scaling.json", work / PLOT
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    from docs.studies.scaling_plot import draw

    draw(results, plot)
    print(scaling_table(results))
    if plot.parent == DOCS / "figures":
        fill_tables(DOCS / "performance.md", results, TABLES)


def study(settings: Settings, asked: argparse.Namespace) -> dict[str, Any]:
    """All results."""
    processes = Processes(settings, lambda _: Path(sys.executable))
    for step in STEPS:
        if reason := processes.take(step):
            raise Failed(reason)
    prompts = points(asked.most)
    options = {"threads": settings.threads, "verify": False, "spin": asked.spin}
    models = {
        name: decoder_of(settings.work / "bundle-none", RuntimeOptions(precision=name, **options))
        for name in asked.variant or VARIANTS
    }
    return {
        "shape": SHAPE,
        "layers": settings.shape.decoder.layers,
        "threads": settings.threads,
        "spin": asked.spin,
        "rounds": asked.rounds,
        "machine": environment.machine(),
        "ours": environment.versions(Path(sys.executable), environment.OURS),
        "predicted": predicted(settings, prompts),
        "variants": measure(models, prompts, asked.rounds),
    }


if __name__ == "__main__":
    main()

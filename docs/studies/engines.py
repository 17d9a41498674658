"""What it takes to export a real shape and to build its engines: ``python -m docs.studies.engines``.

Writes a checkpoint of LLaVA-OneVision-0.5B's shape with random float16 weights, the type that such models are shipped
in, exports it in float16 and builds engines for several GPU generations, each step in a process of its own that reads
its own peaks.
Writes ``docs/results/engines.json`` and the tables of ``docs/real-shapes.md``. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docs.studies.pages import Results, Tables, fill_tables, table
from vtc.benchmark.memory import forget_peak, peak_rss_mb, rss_mb

DOCS = Path(__file__).resolve().parents[1]
SHAPE = "llava-onevision-0.5b"
RECIPES = ("none", "learnpruner-encoder")
CAPABILITIES = ("8.6", "8.9", "12.0")
PARITY_SAMPLES = 2
LIMIT = 1.5
"""What an export may take beyond the model, in sizes of the checkpoint."""


class Peaks:
    """Progress whose every stage is measured: seconds, and the peak of resident memory in MiB."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._stage, self._since = "", time.perf_counter()
        forget_peak()

    def enter(self, stage: str) -> None:
        """Close the stage before and begin another, if it is another."""
        if stage == self._stage:
            return
        now = time.perf_counter()
        if self._stage:
            told = self.stages.setdefault(self._stage, {"seconds": 0.0, "peak_mb": 0.0})
            told["seconds"] += now - self._since
            told["peak_mb"] = max(told["peak_mb"], peak_rss_mb() or 0.0)
        self._stage, self._since = stage, now
        forget_peak()

    @property
    def peak_mb(self) -> float:
        """Of all stages."""
        return max(stage["peak_mb"] for stage in self.stages.values())


# Steps, each in a process of its own ----------------------------------------------------------------------------------


def write_model(work: Path, shape: str) -> dict[str, Any]:
    """The checkpoint, and what each recipe makes of it."""
    import torch

    from vtc.compressed.build import apply_recipe
    from vtc.compressed.checkpoint import Origin, save_compressed
    from vtc.models import model_digest
    from vtc.models.random.shapes import SHAPES
    from vtc.models.random.weights import random_adapter, randomise
    from vtc.recipe import load_recipe

    path = work / "model"
    path.mkdir(parents=True)
    adapter = random_adapter(SHAPES[shape], path, dtype=torch.float16)
    adapter.model.save_pretrained(path)
    origin = Origin(str(path), model_digest(path))
    for name in RECIPES:
        recipe = load_recipe(name)
        model = apply_recipe(adapter, recipe, from_state=True)
        randomise(model.trained.float())
        save_compressed(work / f".{name}", work / name, model, recipe, origin, {})
    return {"checkpoint_mb": sum(file.stat().st_size for file in path.glob("*.safetensors")) / 2**20}


def export_model(work: Path, recipe_name: str) -> dict[str, Any]:
    """Export in float16, as ``vtc export`` does."""
    from exporters.onnx import ExportRequest, export
    from vtc.compressed.checkpoint import load_compressed
    from vtc.data.samples import samples_from
    from vtc.heap import return_large_blocks

    return_large_blocks()
    model, recipe, origin = load_compressed(work / recipe_name)
    gc.collect()
    model_mb, peaks = rss_mb() or 0.0, Peaks()
    peaks.enter("graphs")

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("exporting") and done == total:
            peaks.enter("parity")

    samples = samples_from(model.adapter, None, PARITY_SAMPLES, seed=0)
    parity = export(
        ExportRequest([model], recipe, origin, samples, ("fp16",), progress=progress), work / f"{recipe_name}-bundle"
    )
    peaks.enter("")
    graphs = (work / f"{recipe_name}-bundle" / "onnx").iterdir()
    return {
        "model_mb": model_mb,
        "beyond_mb": peaks.peak_mb - model_mb,
        "stages": peaks.stages,
        "graph_mb": {file.name: file.stat().st_size / 2**20 for file in sorted(graphs)},
        "parity": parity["fp16"].to_dict(),
    }


def build_engines(work: Path, recipe_name: str, capability: str) -> dict[str, Any]:
    """Build for one GPU generation, as ``vtc build`` does."""
    from exporters.targets import target
    from exporters.tensorrt.build import BuildRequest, build
    from vtc.bundle.manifest import load_manifest

    peaks, out = Peaks(), work / f"{recipe_name}-{capability}"
    bundle = load_manifest(work / f"{recipe_name}-bundle")
    peaks.enter("start")

    def progress(what: str, done: int, total: int) -> None:
        peaks.enter(what.split()[-1].removesuffix("_fp16"))  # graphs are told of by name, and by file before

    built = build(BuildRequest(bundle, target("rtx"), "fp16", (capability,), progress=progress), out)
    peaks.enter("")
    engines = {name: built.files[engine.file]["bytes"] / 2**20 for name, engine in built.engines.items()}
    return {"peak_mb": peaks.peak_mb, "stages": peaks.stages, "engine_mb": engines, "library": built.library_version}


STEPS: Mapping[str, Callable[..., Any]] = {"model": write_model, "export": export_model, "build": build_engines}


def run(step: str, work: Path, *arguments: str) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, "-m", "docs.studies.engines", "--work", str(work), "--step", step, *arguments]
    print(step, *arguments, file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    return {**json.loads(done.stdout.splitlines()[-1]), "threads": threads}


# Report ---------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What it was measured on."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    return {
        "processor": found[1] if found else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "onnx", "onnx-ir", "tensorrt-rtx")},
        "onnxruntime": version("onnxruntime-gpu"),
    }


def export_table(results: Results) -> str:
    """A row for each recipe."""
    rows = []
    for name, told in results["exports"].items():
        size = results["checkpoint_mb"]
        stages = {stage: figures["peak_mb"] - told["model_mb"] for stage, figures in told["stages"].items()}
        seconds = [f"{told['stages'][stage]['seconds']:.0f}" for stage in ("graphs", "parity")]
        beyond = [f"{stages['graphs']:,.0f}", f"{stages['parity']:,.0f}"]
        share = f"**{told['beyond_mb'] / size:.2f}**"
        rows.append([f"`{name}`", f"{size:,.0f}", f"{told['model_mb']:,.0f}", *beyond, share, *seconds])
    head = ["recipe", "checkpoint", "model loaded", "graphs, beyond it", "proof, beyond it", "most / checkpoint"]
    return table([*head, "graphs, s", "proof, s"], rows)


def build_table(results: Results) -> str:
    """A row for each graph of each recipe."""
    rows = []
    for name, builds in results["builds"].items():
        graphs = results["exports"][name]["graph_mb"]
        for graph in next(iter(builds.values()))["engine_mb"]:
            size = sum(value for file, value in graphs.items() if file.startswith(f"{graph}_fp16.onnx"))
            figures = [builds[capability] for capability in CAPABILITIES if capability in builds]
            rows.append(
                [
                    f"`{name}`",
                    f"`{graph}`",
                    f"{size:,.0f}",
                    " / ".join(f"{told['engine_mb'][graph]:,.0f}" for told in figures),
                    " / ".join(f"{told['stages'][graph]['peak_mb']:,.0f}" for told in figures),
                    " / ".join(f"{told['stages'][graph]['seconds']:,.0f}" for told in figures),
                ]
            )
    return table(["recipe", "graph", "weights", "engine", "peak", "seconds"], rows)


TABLES: Tables = {"engine_exports": ("exports", export_table), "engine_builds": ("builds", build_table)}


def main() -> None:
    """Measure, or take one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, help="Keep checkpoint, bundles and engines here; the directory must be empty."
    )
    parser.add_argument("--shape", default=SHAPE, help="Another shape is measured and printed, but not published.")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps(STEPS[asked.step](asked.work, *asked.arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="vtc-engines-") as directory:
        work = (asked.work or Path(directory)).absolute()
        results: dict[str, Any] = {"shape": asked.shape, "machine": machine(), "limit": LIMIT}
        results |= run("model", work, asked.shape)
        results["exports"] = {name: run("export", work, name) for name in RECIPES}
        results["builds"] = {
            name: {capability: run("build", work, name, capability) for capability in CAPABILITIES} for name in RECIPES
        }
    if asked.shape == SHAPE:
        text = json.dumps(results, indent=2) + "\n"
        (DOCS / "results" / "engines.json").write_text(text, encoding="utf-8")
        fill_tables(DOCS / "real-shapes.md", results, TABLES)
    print(export_table(results), build_table(results), sep="\n\n")


if __name__ == "__main__":
    main()

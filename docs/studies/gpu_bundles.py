"""Bundles of the reference model, and of a 0.5B shape, on a GPU: ONNX Runtime's CUDA provider, and TensorRT's engines.

``python -m docs.studies.gpu_bundles BUNDLE ...`` measures one variant in a process of its own, which is all that a
fault in a driver ends, and prints JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from docs.studies.unattended import Skip, note

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("fp16", "fp16-ort", "fp32", "fp32-ort", "q4f16", "q4f16-ort")
MADE = {"reference-learnpruner": ("learnpruner", VARIANTS), "reference-original": ("none", ("fp16", "fp16-ort"))}
"""Bundle, its recipe and what it holds: more would not travel in 60 MiB."""
TINY_MADE = {"reference-learnpruner": ("learnpruner", ("fp16", "fp16-ort"))}
LIMIT_MIB = 60
HALF = "llava-onevision-0.5b"
PER_VARIANT = 60
"""Seconds for one variant."""
NEW_TOKENS = 6
"""Of an answer that is compared; the longest that is right has fewer."""


# Bundles --------------------------------------------------------------------------------------------------------------


def prepare(out: Path, tiny: bool = False) -> Iterator[str]:
    """Compress and export the reference model; names each bundle that was made.

    Raises
    ------
    RuntimeError
        If a command fails, or the bundles are larger than what travels with a checkout.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vtc-gpu-") as directory:
        for name, (recipe, variants) in (TINY_MADE if tiny else MADE).items():
            compressed = Path(directory) / name
            vtc("compress", "reference", "--recipe", recipe, "-o", compressed)
            vtc("export", compressed, "-o", out / name, "--samples", "4", "--variant", ",".join(variants))
            yield name
    if (size := mib(out)) > LIMIT_MIB:
        raise RuntimeError(f"{out}: bundles are {size:.0f} MiB, and no more than {LIMIT_MIB} travel with a checkout")


def mib(folder: Path) -> float:
    """Size of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def vtc(*arguments: str | Path, timeout: float | None = None) -> str:
    """What a command of vtc's prints.

    Raises
    ------
    RuntimeError
        If it fails; the message is its last line.
    """
    return _ran([sys.executable, "-m", "vtc.cli", *map(str, arguments)], timeout)


def _ran(command: Sequence[str], timeout: float | None) -> str:
    print("$", *command[1:], flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as expired:
        raise RuntimeError(f"stopped after {expired.timeout:.0f} s") from expired
    print(done.stderr[-4000:], flush=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300])
    return done.stdout


def export(path: Path, tiny: bool, bundles: Path) -> None:
    """The reference model's bundles, made here."""
    if (bundles / next(iter(MADE)) / "manifest.json").exists():
        raise Skip(f"{bundles.name} holds them already")
    for name in prepare(bundles, tiny):
        note(path, **{name: {"mib": round(mib(bundles / name), 1)}})


def _bundles(folder: Path) -> list[Path]:
    found = [folder / name for name in MADE if (folder / name / "manifest.json").exists()]
    if not found:
        raise Skip("there is no bundle: none was made here, and --bundles DIR gives none")
    return found


# ONNX Runtime ---------------------------------------------------------------------------------------------------------


def onnxruntime(path: Path, tiny: bool, bundles: Path) -> None:
    """Every variant on the CUDA provider: latency, and whether answers are those of the CPU provider."""
    from vtc.errors import VtcError
    from vtc.runtime.onnxruntime.providers import choose_provider

    provider = "cpu" if tiny else "cuda"
    try:
        choose_provider(provider)
    except VtcError as error:
        raise Skip(str(error)) from error
    failed = []
    for bundle in _bundles(bundles):
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        held = [one["name"] for one in manifest["variants"]]
        for variant in sorted(held, key=VARIANTS.index):
            label, precision = f"{bundle.name} {variant}", variant if "-" in variant else f"{variant}-portable"
            if fault := _variant(path, label, bundle, tiny, ["--precision", precision, "--provider", provider]):
                failed.append(f"{label}: {fault}")
    if failed:
        raise RuntimeError("; ".join(failed))


def _variant(path: Path, label: str, bundle: Path, tiny: bool, options: Sequence[str]) -> str:
    """Measure one variant in a process of its own and note it; what went wrong, or nothing."""
    questions, repeats = ("4", "2") if tiny else ("50", "30")
    asked = [str(bundle), "--questions", questions, "--repeats", repeats, *options]
    try:
        told = _ran([sys.executable, "-m", "docs.studies.gpu_bundles", *asked], PER_VARIANT)
    except RuntimeError as error:
        note(path, **{label: {"error": str(error)}})
        return str(error)
    note(path, **{label: json.loads(told.splitlines()[-1])})
    return ""


def compared(bundle: Path, options: Any, questions: int) -> dict[str, Any]:
    """How many of a bundle's answers are those of its portable graphs of the same precision on the CPU provider."""
    from vtc.data.datasets import load_dataset
    from vtc.runtime.options import RuntimeOptions
    from vtc.runtime.vlm import VLM

    items = load_dataset("reference", questions, seed=0).items

    def answers(model: VLM) -> list[list[int]]:
        asked = (([[item.load()]], [model.chat(item.question)]) for item in items)
        return [list(model.generate(*one, NEW_TOKENS)[0].token_ids) for one in asked]

    model = VLM.load(bundle, options)
    portable = f"{model.precision}-portable"
    here = answers(model)
    del model
    there = answers(VLM.load(bundle, RuntimeOptions(provider="cpu", precision=portable)))
    equal = sum(a == b for a, b in zip(here, there, strict=True))
    return {"questions": len(items), "equal_to_cpu": equal, "cpu": portable}


def measure(bundle: Path, options: Any, questions: int, repeats: int) -> dict[str, Any]:
    """Latency of a bundle, and how many of its answers are the CPU provider's."""
    import vtc

    answers = compared(bundle, options, questions)
    report = vtc.bench(bundle, runtime=options, repeats=repeats, warmup=3, memory=False)
    return report | {"answers": answers}


# TensorRT -------------------------------------------------------------------------------------------------------------


def tensorrt(path: Path, tiny: bool, bundles: Path) -> None:
    """Engines of the reference bundle by every TensorRT that is installed, built and timed."""
    from exporters.available import JETSON_RELEASE, can_build
    from exporters.targets import TARGETS
    from vtc.runtime.nvidia import gpu_here

    bundle, gpu = _bundles(bundles)[0], gpu_here()
    capability = gpu.capability if gpu else "8.6" if tiny else ""
    failed, reasons, ran = [], [], False
    for target in (one for one in TARGETS if one.jetson == JETSON_RELEASE.exists()):
        works, state = can_build(target)
        if works and not capability:
            works, state = False, "no NVIDIA GPU here"
        if works and capability not in (*target.capabilities, *target.on_request):
            works, state = False, f"{target.library} builds nothing for SM {capability}"
        if not works:
            reasons.append(f"{target.name}: {state}")
            continue
        engines = path.parent / "engines" / target.name
        asked: list[str | Path] = ["build", bundle, "--target", target.name, "--precision", "fp16", "-o", engines]
        ahead = ["--capability", capability] if target.ahead_of_time else []
        begin = time.monotonic()
        try:
            built = json.loads(vtc(*asked, *ahead, "--json"))
        except RuntimeError as error:
            failed.append(f"{target.name}: {error}")
            continue
        kept = {key: built[key] for key in ("library", "library_version", "capabilities", "precision", "engines")}
        note(path, **{f"{target.name} build": kept | {"seconds": round(time.monotonic() - begin, 1)}})
        if gpu is None:
            reasons.append(f"{target.name}: built for SM {capability}, not run: no NVIDIA GPU here")
            continue
        ran = True
        if fault := _variant(path, f"{target.name} fp16", bundle, tiny, ["--engines", str(engines)]):
            failed.append(f"{target.name}: {fault}")
    note(path, not_run=reasons)
    if failed:
        raise RuntimeError("; ".join(failed))
    if not ran:
        raise Skip("; ".join(reasons))


# A 0.5B shape ---------------------------------------------------------------------------------------------------------


def half(path: Path, tiny: bool, out: Path) -> None:
    """A 0.5B shape in ONNX Runtime, exported here: original and compressed, then portable and optimised graphs."""
    from vtc.benchmark.report import Rounds
    from vtc.benchmark.shape import Job, bench_shape
    from vtc.errors import VtcError
    from vtc.models.random.shapes import SHAPES
    from vtc.recipe import load_recipe
    from vtc.runtime.onnxruntime.providers import choose_provider
    from vtc.runtime.options import RuntimeOptions

    device, precision, shape = ("cpu", "fp32", "tiny-siglip") if tiny else ("cuda", "fp16", HALF)
    try:
        choose_provider(device)
    except VtcError as error:
        raise Skip(str(error)) from error
    recipe = load_recipe("learnpruner", [f"budget.keep_average={40 if not tiny else 32}"])
    rounds = Rounds(repeats=2 if tiny else 10, warmup=1, max_new_tokens=32, memory=False)
    job = Job(SHAPES[shape], recipe, rounds, device=device, precision=precision, work=out)
    note(path, **{shape: bench_shape(job)})
    bundle = out / f"{shape}-{recipe.digest[:12]}-{precision}"
    vtc("optimize", bundle, "--variant", f"{precision}-ort", "--samples", "2")
    from vtc import bench

    for variant in (f"{precision}-portable", f"{precision}-ort"):
        options = RuntimeOptions(provider=device, precision=variant, verify=False)
        note(
            path,
            **{f"{shape} {variant}": bench(bundle, runtime=options, repeats=rounds.repeats, warmup=1, memory=False)},
        )


# One variant ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure one variant."""
    from vtc.runtime.options import RuntimeOptions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision")
    parser.add_argument("--provider")
    parser.add_argument("--engines", type=Path)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=30)
    asked = parser.parse_args()
    options = RuntimeOptions(provider=asked.provider, precision=asked.precision)
    if asked.engines:
        options = replace(options, backend="tensorrt", engines=asked.engines, precision=None)
    print(json.dumps(measure(asked.bundle, options, asked.questions, asked.repeats)))


if __name__ == "__main__":
    main()

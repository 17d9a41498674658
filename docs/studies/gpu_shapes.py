"""What the study of a GPU sees of the machine, the tests for GPUs, and shapes of published models in PyTorch."""

from __future__ import annotations

import gc
import importlib
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from docs.studies.unattended import Skip, note

ROOT = Path(__file__).resolve().parents[2]
KEEP = 32
"""Visual tokens of an image, mean over the decoder's layers: 32 of 576, and 160 of 2,880 in five images."""
SHAPES = ("llava-1.5-7b", "llava-next-7b")
TINY_SHAPES = ("tiny", "tiny-siglip")
MEMORY_GIB = 22
"""Free memory of the GPU that 7B shapes take in bfloat16, CUDA graphs and the original's cache included."""
MEASURED = (("eager", 32, 7), ("graphs", 32, 9), ("graphs", 128, 9), ("eager", 128, 3))
"""How it runs, new tokens, rounds; the most valuable first."""
TESTS = re.compile(r"mark\.gpu\b")


# The machine ----------------------------------------------------------------------------------------------------------


def nvidia_smi() -> dict[str, str] | None:
    """Name, driver and memory of the first GPU, as the driver's own tool tells them; None without one."""
    fields = ("name", "driver_version", "memory.total")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in told.splitlines()[0].split(",")] if told.strip() else []
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else None


def doctor(path: Path) -> None:
    """The GPU, the libraries, and what ``vtc doctor`` makes of them."""
    note(path, gpu=nvidia_smi())
    for name, look in (("torch", _torch), ("onnxruntime", _onnxruntime), ("tensorrt", _library("tensorrt"))):
        note(path, **{name: _told(look)})
    note(path, tensorrt_rtx=_told(_library("tensorrt_rtx")))
    note(path, doctor=_told(_doctor))


def _told(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except Exception as error:
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}


def _torch() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        found |= {"gpu": torch.cuda.get_device_name(), "capability": capability}
        found |= {"free_gib": round(free / 2**30, 1), "memory_gib": round(whole / 2**30, 1)}
    return found


def _onnxruntime() -> dict[str, Any]:
    module: Any = importlib.import_module("onnxruntime")
    return {"version": module.__version__, "providers": module.get_available_providers()}


def _library(name: str) -> Callable[[], dict[str, Any]]:
    return lambda: {"version": importlib.import_module(name).__version__}


def _doctor() -> Any:
    import json

    command = [sys.executable, "-m", "vtc.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise RuntimeError((done.stderr.strip().splitlines() or ["vtc doctor says nothing"])[-1])
    return json.loads(done.stdout)


# Tests ----------------------------------------------------------------------------------------------------------------


def tests(path: Path, tiny: bool) -> None:
    """The tests that are marked for a GPU; without one, the others in their files."""
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if TESTS.search(file.read_text("utf-8"))]
    names = [file.relative_to(ROOT).as_posix() for file in files]
    report = path.with_suffix(".xml")
    marked = "not gpu and not slow and not full" if tiny else "gpu"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marked, f"--junitxml={report}", *names]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if not report.exists():
        raise RuntimeError(f"pytest ended with exit code {code} and wrote no report; its log says why")
    found = cases(report)
    note(path, files=names, marked=marked, **found)
    report.unlink()
    if failed := [case["name"] for case in found["cases"] if case["outcome"] == "failed"]:
        raise RuntimeError(f"{len(failed)} of {len(found['cases'])} tests failed: {', '.join(failed[:3])}")
    if not any(case["outcome"] == "passed" for case in found["cases"]):
        reasons = dict.fromkeys(case["reason"] for case in found["cases"] if case["reason"])
        raise Skip(f"no test ran: {'; '.join(reasons) or 'none was collected'}")


def cases(report: Path) -> dict[str, Any]:
    """The tests of a report in JUnit's form, by outcome."""
    found: list[dict[str, Any]] = []
    for case in ElementTree.parse(report).iter("testcase"):
        told = {child.tag: child.get("message", "") for child in case}
        outcome = "failed" if {"failure", "error"} & set(told) else "skipped" if "skipped" in told else "passed"
        reason = next(iter(told.values()), "") if outcome != "passed" else ""
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name', '')}"
        found.append({"name": name, "outcome": outcome, "seconds": float(case.get("time", 0)), "reason": reason[:200]})
    counts = {kind: sum(case["outcome"] == kind for case in found) for kind in ("passed", "failed", "skipped")}
    return {**counts, "cases": found}


# Shapes ---------------------------------------------------------------------------------------------------------------


def shapes(path: Path, tiny: bool) -> None:
    """Published shapes with random weights in PyTorch, original and compressed; one build serves all it can.

    The shapes of 7B models differ in their number of images alone.
    """
    import torch

    from vtc.benchmark.shape import Job, recipes
    from vtc.benchmark.shape_models import ShapeModels, random_models
    from vtc.models.random.shapes import SHAPES as KNOWN
    from vtc.models.random.shapes import Shape
    from vtc.recipe import load_recipe

    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.bfloat16)
    if not tiny:
        _check_memory()
    recipe = load_recipe("learnpruner", [f"budget.keep_average={KEEP}"])
    built: dict[Shape, ShapeModels] = {}
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="vtc-gpu-") as directory:
        for mode, new_tokens, repeats in MEASURED:
            for name in TINY_SHAPES if tiny else SHAPES:
                shape = KNOWN[name]
                same = replace(shape, name="", summary="", images=1)
                if same not in built:
                    begin, place = time.monotonic(), Path(directory) / name
                    place.mkdir()
                    built[same] = random_models(shape, recipes(recipe), place, dtype, device)
                    if not tiny:
                        torch.cuda.synchronize()
                    note(path, **{f"{name} build": {"seconds": round(time.monotonic() - begin, 2)}})
                job = Job(shape, recipe, backend="torch", device=device, precision="fp32" if tiny else "bf16")
                job = replace(job, cuda_graphs=mode == "graphs")
                rounds = replace(job.rounds, repeats=2 if tiny else repeats, max_new_tokens=new_tokens)
                label = f"{name} {mode} {new_tokens}"
                if error := _measured(path, label, replace(job, rounds=rounds), built[same], tiny):
                    failed.append(f"{label}: {error}")
    if failed:
        raise RuntimeError("; ".join(failed))


def _measured(path: Path, label: str, job: Any, built: Any, tiny: bool) -> str:
    """Measure and note; what went wrong, or nothing."""
    import torch

    from vtc.benchmark.replay import run_again
    from vtc.benchmark.shape import bench_shape

    begin = time.monotonic()
    try:
        report = bench_shape(job, built=built, recording=run_again if tiny else None)
    except Exception as error:
        found = (str(error).strip().splitlines() or [type(error).__name__])[0]
        note(path, **{label: {"error": found}})
        return found
    finally:
        gc.collect()  # what was recorded lets go of its memory
        if job.device == "cuda":
            torch.cuda.empty_cache()
    note(path, **{label: report | {"seconds": round(time.monotonic() - begin, 1)}})
    return ""


def _check_memory() -> None:
    import torch

    if not torch.cuda.is_available():
        raise Skip("PyTorch finds no NVIDIA GPU here")
    if not torch.cuda.is_bf16_supported():
        raise Skip(f"{torch.cuda.get_device_name()} has no bfloat16")
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < MEMORY_GIB:
        raise Skip(f"7B shapes take {MEMORY_GIB} GiB of GPU memory, and {free:.1f} are free")

"""Everything that an NVIDIA GPU shows, in one run that nobody has to watch: ``python3 -m docs.studies.gpu``.

Steps run one after the other, the most valuable first, each in a process of its own, and each writes
``out/gpu/STEP.json``: what the machine has, shapes of 7B models in PyTorch, the tests for GPUs, the reference model's
bundles in ONNX Runtime and TensorRT, a 0.5B shape. One that cannot run says why, and none stops another. No network is
needed; ``docs/gpu.md`` says what is. ``--page`` writes that page's tables from ``docs/results/gpu``.
"""

from __future__ import annotations

import argparse
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from docs.studies import gpu_bundles, gpu_shapes, gpu_tables
from docs.studies.pages import fill_tables
from docs.studies.unattended import Step, run_step, run_steps

ROOT = Path(__file__).resolve().parents[2]
RUN = ("jinja2", "numpy", "PIL", "pydantic", "yaml", "rich", "safetensors", "tokenizers")
TORCH = (*RUN, "torch", "transformers")
EXPORT = (*TORCH, "accelerate", "click", "onnx", "onnxscript", "onnx_ir", "onnxruntime")
SECONDS: dict[str, tuple[float, float, Sequence[str]]] = {
    "doctor": (10, 90, ()),
    "shapes": (90, 330, TORCH),
    "tests": (30, 120, (*EXPORT, "pytest")),
    "export": (60, 150, EXPORT),
    "onnxruntime": (30, 150, (*RUN, "onnxruntime")),
    "tensorrt": (30, 120, (*RUN, "click", "onnx", "onnxruntime")),
    "half": (120, 300, EXPORT),
}
"""Of each step: seconds below which it is not started, seconds after which it is stopped, modules that it imports."""
TINY_LIMIT = 300
"""Seconds of each step in tiny form: a busy machine's export is slow at any size."""


def steps(out: Path, bundles: Path | None, tiny: bool, only: Sequence[str] = ()) -> list[Step]:
    """What is run, the most valuable first."""
    asked = ["--out", str(out), *(["--bundles", str(bundles)] if bundles else []), *(["--tiny"] if tiny else [])]
    command = [sys.executable, "-m", "docs.studies.gpu", *asked, "--step"]
    return [
        Step(name, (*command, name), 0 if tiny else estimate, TINY_LIMIT if tiny else limit, needs)
        for name, (estimate, limit, needs) in SECONDS.items()
        if not only or name in only
    ]


def work(name: str, out: Path, bundles: Path, tiny: bool) -> Callable[[], None]:
    """What a step does in its own process."""
    path = out / f"{name}.json"
    jobs: dict[str, Callable[[], None]] = {
        "doctor": partial(gpu_shapes.doctor, path),
        "shapes": partial(gpu_shapes.shapes, path, tiny),
        "tests": partial(gpu_shapes.tests, path, tiny),
        "export": partial(gpu_bundles.export, path, tiny, bundles),
        "onnxruntime": partial(gpu_bundles.onnxruntime, path, tiny, bundles),
        "tensorrt": partial(gpu_bundles.tensorrt, path, tiny, bundles),
        "half": partial(gpu_bundles.half, path, tiny, out / "shapes"),
    }
    return jobs[name]


def facts(tiny: bool) -> dict[str, Any]:
    """What every record says of the machine and the run."""
    found = gpu_shapes.nvidia_smi()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return {
        "vtc": project.partition('\nversion = "')[2].partition('"')[0],
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "gpu": found and found["name"],
        "driver": found and found["driver_version"],
        "python": platform.python_version(),
        "tiny": tiny,
    }


def stop(*_: object) -> None:
    """End as Ctrl-C does, so that the step under way is ended too."""
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.studies.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=12, help="for all steps together (default: 12)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/gpu"), help="where results go (default: out/gpu)")
    parser.add_argument("--bundles", type=Path, metavar="DIR", help="the reference model's bundles, made by --prepare")
    parser.add_argument("--only", default="", metavar="STEPS", help=f"of {','.join(SECONDS)}")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, with tiny shapes and few questions")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="make the bundles, on any machine, and do no more")
    parser.add_argument("--page", action="store_true", help="write the tables of docs/gpu.md, and do no more")
    parser.add_argument("--step", choices=SECONDS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    out = asked.out.absolute()
    bundles = None if asked.bundles is None else asked.bundles.absolute()
    only = [name for name in asked.only.split(",") if name]
    if unknown := [name for name in only if name not in SECONDS]:
        parser.error(f"--only: there is no step {unknown[0]}; steps are {', '.join(SECONDS)}")
    if asked.page:
        fill_tables(ROOT / "docs" / "gpu.md", gpu_tables.results(), gpu_tables.TABLES)
    elif asked.prepare:
        for name in gpu_bundles.prepare(asked.prepare.absolute()):
            print(f"{asked.prepare / name}: {gpu_bundles.mib(asked.prepare / name):.0f} MiB")
    elif asked.step:
        sys.exit(run_step(out / f"{asked.step}.json", work(asked.step, out, bundles or out / "bundles", asked.tiny)))
    else:
        signal.signal(signal.SIGTERM, stop)
        found = steps(out, bundles, asked.tiny, only)
        try:
            run_steps(found, out, 60 * asked.minutes, facts(asked.tiny), ROOT, partial(print, flush=True))
        except KeyboardInterrupt:
            sys.exit(f"interrupted; what was found is in {asked.out}")


if __name__ == "__main__":
    main()

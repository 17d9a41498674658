"""The tables of docs/gpu.md, from what is in docs/results/gpu.

Runs of :mod:`docs.studies.gpu` are folders there, ``STEP.json`` and all. Files beside them are single reports of ``vtc
bench`` from before there was such a study.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.studies.pages import Results, Tables, table

RESULTS = Path(__file__).resolve().parents[1] / "results" / "gpu"
EARLIER = {"vtc": "0.2.0", "date": "2026-11-28", "driver": "580.159"}
"""Of the reports beside the runs, which do not say it themselves."""
STEPS = ("doctor", "shapes", "tests", "export", "onnxruntime", "tensorrt", "half")
NOT_RUN = "Not run."
MODES = {
    "PyTorch, eager": "eager",
    "PyTorch: vision encoder and decoder segments are CUDA graphs in prefill": "graphs, decoding eager",
    "PyTorch: the vision encoder, decoder segments in prefill and every step": "graphs",
}
"""How a shape was run, by how its report's ``backend`` begins."""


def results(folder: Path = RESULTS) -> dict[str, Any]:
    """What there is, by table. Runs in tiny form measure nothing, and are left out."""
    found = {path.name: _run(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    runs = {name: run for name, run in found.items() if not any(record.get("tiny") for record in run.values())}
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {
        "gpu_machines": [*_earlier(reports), *runs.items()],
        "gpu_steps": runs,
        "gpu_shapes": [*_of_reports(reports, shapes=True), *_of_runs(runs, "shapes")],
        "gpu_variants": [
            *_of_reports(reports, shapes=False),
            *_of_runs(runs, "onnxruntime"),
            *_of_runs(runs, "tensorrt"),
            *_of_runs(runs, "half"),
        ],
        "gpu_tests": {name: run["tests"] for name, run in runs.items() if run.get("tests", {}).get("result")},
    }


def _run(folder: Path) -> dict[str, Any]:
    found = {name: folder / f"{name}.json" for name in STEPS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.exists()}


def _earlier(reports: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    versions: dict[str, list[str]] = {}
    for report in reports:
        environment = report["environment"]
        versions.setdefault("torch", []).append(environment.get("torch"))
        versions.setdefault("onnxruntime", []).append(environment["onnxruntime"])
    if reports:
        libraries = {name: " and ".join(dict.fromkeys(filter(None, found))) for name, found in versions.items()}
        gpu = next(report["environment"]["gpu"] for report in reports if report["environment"].get("gpu"))
        yield "earlier", {"doctor": {**EARLIER, "gpu": gpu, "python": "", "result": {"libraries": libraries}}}


def _of_reports(reports: list[dict[str, Any]], *, shapes: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for report in reports:
        if ("shape" in report) == shapes:
            yield "earlier", "reference" if not shapes else "", report


def _of_runs(runs: Mapping[str, Any], step: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for run, steps in runs.items():
        for label, report in steps.get(step, {}).get("result", {}).items():
            if isinstance(report, dict) and report.get("kind") == "bench":
                yield run, label, report


# Tables ---------------------------------------------------------------------------------------------------------------


def _machines(found: Results) -> str:
    body = []
    for name, run in found["gpu_machines"]:
        record = run.get("doctor") or next(iter(run.values()))
        told = record["result"]
        torch, runtime = (told.get(library) or {} for library in ("torch", "onnxruntime"))
        libraries = told.get("libraries") or {
            "torch": torch.get("version"),
            "onnxruntime": runtime.get("version"),
            "tensorrt": (told.get("tensorrt") or {}).get("version"),
            "tensorrt_rtx": (told.get("tensorrt_rtx") or {}).get("version"),
        }
        shown = ", ".join(f"{library} {version}" for library, version in libraries.items() if version)
        gpu = record.get("gpu") or "none: tiny shapes on a CPU"
        body.append([name, gpu, record.get("driver") or "", shown, record["vtc"], record["date"]])
    return table(["run", "GPU", "driver", "libraries", "vtc", "date"], body, left=6) if body else NOT_RUN


def _steps(found: Results) -> str:
    body = [
        [run, step, record["status"], f"{record['seconds']:.0f}", record["reason"].replace("|", "\\|")]
        for run, steps in found["gpu_steps"].items()
        for step, record in steps.items()
    ]
    return table(["run", "step", "status", "seconds", "why"], body, left=5) if body else NOT_RUN


def _shapes(found: Results) -> str:
    body = []
    for run, _, report in found["gpu_shapes"]:
        backend = report["protocol"].get("backend", "")
        mode = next((name for begin, name in MODES.items() if backend.startswith(begin)), "ONNX Runtime")
        shape = report["shape"]
        for one, own in zip(report["runs"], (False, True), strict=True):
            sees = " → ".join(f"{length:.0f}" for length in one["segment_lengths"])
            body.append(
                [
                    run,
                    f"`{shape['name']}`" if not own else f"`{one['name']}`",
                    mode,
                    f"{shape['images'] * one['layer_average']:.0f}",
                    sees,
                    _ms(one["vision_ms"]),
                    _ms(one["prefill_ms"]),
                    _ms(one["ttft_ms"]),
                    _ratio(report, "ttft") if own else "",
                    f"{report['prediction']['speedup']['ttft']['predicted']:.1f}x" if own else "",
                    _ms(one["tpot_ms"]),
                    str(one["new_tokens"]),
                    _ms(one["e2e_ms"]),
                    _ratio(report, "e2e") if own else "",
                    f"{one['kv_bytes'] / 1e6:.0f}",
                    f"{one['peak_memory_mb']:,.0f}" if one["peak_memory_mb"] else "",
                ]
            )
    head = ["run", "model", "how", "visual tokens", "prefill sees", "vision", "prefill", "TTFT", "faster", "predicted"]
    head += ["a token", "new tokens", "whole answer", "faster", "KV, MB", "peak, MiB"]
    return table(head, body, left=3) if body else NOT_RUN


def _variants(found: Results) -> str:
    body = []
    for run, label, report in found["gpu_variants"]:
        for one in report["runs"]:
            name = f"{label}, {one['name']}" if len(report["runs"]) > 1 else label
            answers = report.get("answers")
            equal = f"{answers['equal_to_cpu']} of {answers['questions']}" if answers else "not compared"
            times = [_ms(one[f"{part}_ms"]) for part in ("vision", "prefill", "ttft", "tpot")]
            body.append([run, name, one.get("variant", one["precision"]), one.get("provider", ""), *times, equal])
    head = ["run", "what", "variant", "on", "vision", "prefill", "TTFT", "a token", "answers equal to the CPU's"]
    return table(head, body, left=4) if body else NOT_RUN


def _tests(found: Results) -> str:
    body = []
    for run, record in found["gpu_tests"].items():
        told = record["result"]
        failed = ", ".join(f"`{case['name']}`" for case in told["cases"] if case["outcome"] == "failed")
        body.append([run, str(told["passed"]), str(told["skipped"]), str(told["failed"]), failed])
    return table(["run", "passed", "skipped", "failed", "which failed"], body) if body else NOT_RUN


def _ms(figure: Mapping[str, Any] | None) -> str:
    return "" if not figure or figure["p50"] is None else f"{figure['p50']:.1f}"


def _ratio(report: Mapping[str, Any], name: str) -> str:
    low, high = report["speedup"]["ci95"][name]
    return f"**{report['speedup'][name]:.2f}x** [{low:.2f}, {high:.2f}]"


TABLES: Tables = {
    "gpu_machines": ("gpu_machines", _machines),
    "gpu_steps": ("gpu_steps", _steps),
    "gpu_shapes": ("gpu_shapes", _shapes),
    "gpu_variants": ("gpu_variants", _variants),
    "gpu_tests": ("gpu_tests", _tests),
}
"""Slot of the page, and the results it is made from."""

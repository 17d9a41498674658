"""What a mixture of experts costs by every expert and by the chosen ones: ``python -m docs.studies.sparse_experts``.

A random Qwen3-VL-MoE of 64 experts, 8 of them active, is exported in float32 and few bits, and its forms are asked in
turns: 300 tokens of a prompt, then single tokens. Needs 6 GB of disk, 9 GB of memory, and ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from docs.studies.expert_operators import operators
from docs.studies.pages import Results, fill_tables, table

DEFAULT = Path("docs/results/sparse_experts.json")
PAGE = Path("docs/mixtures.md")
SIZES = {"hidden_size": 768, "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 384}
SIZES_OF_A_LAYER = (64, 8, 768, 384)
"""Experts, active experts, width, inner size: the same."""
LAYERS = 4
PROMPT, STEPS, ROUNDS, UNTIMED = 300, 12, 7, 2
QUESTIONS = 600
PRECISIONS = ("fp32", "q4", "int8")
EVERY, GATHERED, OPERATOR = "every expert", "gathered in steps", "operator"
"""Portable graphs alone, the same with graphs for steps, and ONNX Runtime's own operators."""
FORMS = {
    "every expert": ("fp32", EVERY),
    "experts gathered in steps": ("fp32", GATHERED),
    "MoE operator": ("fp32", OPERATOR),
    "q4, gathered in steps": ("q4", GATHERED),
    "q4, QMoE operator": ("q4", OPERATOR),
    "int8, gathered in steps": ("int8", GATHERED),
    "int8, QMoE operator": ("int8", OPERATOR),
}
TORCH = ("grouped_mm", "eager", "batched_mm", "every expert")
CLOSE = 1e-4
"""Share of the largest logit, or of the largest value of a layer, by which forms may differ, in the order of sums."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="An empty directory for the model and its bundle.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=DEFAULT)
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(_memory(options.work / "bundle", options.memory_of, options.threads)))
        return
    if not (options.work / "bundle").exists():
        _export(options.work)
    results: dict[str, Any] = {
        "sizes": SIZES | {"layers": LAYERS},
        "prompt": PROMPT,
        "threads": options.threads,
        "onnxruntime": _bundles(options.work / "bundle", options.threads),
        "operators": operators(*SIZES_OF_A_LAYER, (1, PROMPT)),
        "pytorch": _pytorch(options.work / "model", options.threads),
        "memory": {form: _memory_apart(options, form) for form in FORMS},
        "reference": _reference(options.work),
    }
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    fill_tables(PAGE, results, TABLES)
    print("\n\n".join(make(results) for _, make in TABLES.values()))


def _onnxruntime(results: Results) -> str:
    first = results["onnxruntime"]["every expert"]
    rows = []
    for form, one in results["onnxruntime"].items():
        times = [[f"{one[name]:.1f}", f"{first[name] / one[name]:.1f}x"] for name in ("prefill_ms", "step_ms")]
        held = [f"{results['memory'][form][part]:,.0f}" for part in ("peak_mb", "own_mb", "mapped_mb")]
        off = [f"{one[name]:.0e}" for name in ("logits_off", "from_fp32")]
        rows.append([form, *times[0], *times[1], *off, *held, f"{one['files_mb']:,.0f}"])
    head = ["ONNX Runtime", f"prefill of {results['prompt']} tokens, ms", "", "step, ms", ""]
    head += ["logits off by", "from float32's"]
    return table([*head, "resident at most, MiB", "own memory", "files mapped", "files"], rows)


def _torch(results: Results) -> str:
    rows = [
        [form, *("-" if value is None else f"{value:.1f}" for value in one.values())]
        for form, one in results["pytorch"].items()
    ]
    return table(["PyTorch, one layer", f"{results['prompt']} tokens, ms", "1 token, ms"], rows)


def _operators(results: Results) -> str:
    counts = (1, results["prompt"])
    rows = [
        [
            name,
            *(f"{one[f'{count}_ms']:.2f}" for count in counts),
            *(f"{max(one[f'{count}_{what}'] for count in counts):.1e}" for what in ("off", "from_fp32")),
        ]
        for name, one in results["operators"].items()
    ]
    head = ["ONNX Runtime, one layer", "1 token, ms", f"{results['prompt']} tokens, ms"]
    return table([*head, "output off by", "from float32's"], rows)


def _answers(results: Results) -> str:
    rows = [
        [
            f"`{name}`",
            f"{one['accuracy']:.1%}",
            f"{one['retention']:.1%} [{one['ci95'][0]:.1%}, {one['ci95'][1]:.1%}]",
            f"{one['equal_answers']:.1%}",
            f"{one['files_mb']:.1f}",
        ]
        for name, one in results["reference"].items()
    ]
    return table(["`reference-moe`", "accuracy", "of fp32's, 95 % interval", "equal answers", "files, MiB"], rows)


TABLES = {
    "sparse_experts": ("onnxruntime", _onnxruntime),
    "sparse_experts_reference": ("reference", _answers),
    "sparse_experts_operators": ("operators", _operators),
    "sparse_experts_torch": ("pytorch", _torch),
}


def _export(work: Path) -> None:
    from exporters.onnx import ExportRequest, export
    from vtc.compressed.build import apply_recipe
    from vtc.compressed.checkpoint import Origin
    from vtc.data.samples import samples_from
    from vtc.models import load_adapter
    from vtc.models.random.tiny_families import TINY_FAMILIES, write_family
    from vtc.recipe import NONE

    tiny = TINY_FAMILIES["qwen3_vl_moe"](2, LAYERS)
    vision = tiny.vision | {"out_hidden_size": SIZES["hidden_size"]}
    work.mkdir(parents=True, exist_ok=True)
    write_family("qwen3_vl_moe", replace(tiny, vision=vision, text=tiny.text | SIZES), work / "model")
    model = apply_recipe(load_adapter(work / "model"), NONE)
    samples = samples_from(model.adapter, None, 2, seed=0)
    export(
        ExportRequest(
            [model],
            NONE,
            Origin("random", "0" * 64),
            samples,
            PRECISIONS,
            optimised=tuple(f"{name}-ort" for name in PRECISIONS),
        ),
        work / "bundle",
    )


def _open(bundle: Path, form: str, threads: int, *, exact: bool = False) -> Any:
    """A bundle in a form; as it is to be run, or as exactly as it can be."""
    from exporters.exact import exactly
    from vtc.bundle.manifest import load_manifest
    from vtc.runtime.onnxruntime.backend import OnnxRuntime
    from vtc.runtime.options import RuntimeOptions
    from vtc.runtime.vlm import VLM

    manifest = load_manifest(bundle, verify=False)
    name, how = FORMS.get(form, (form, EVERY))
    if how == EVERY:
        manifest = replace(manifest, segments=tuple(replace(one, step=None) for one in manifest.segments))
    variant = f"{name}-ort" if how == OPERATOR else f"{name}-portable"
    manifest = exactly(manifest, variant) if exact else manifest
    return VLM(manifest, OnnxRuntime(manifest, RuntimeOptions(precision=variant, threads=threads, provider="cpu")))


def _question(model: Any) -> tuple[list[list[Any]], list[str]]:
    """Noise, and as many words as make a prompt of the length that is wanted."""
    from PIL import Image

    served = model.manifest.images[0]
    noise = np.random.default_rng(0).integers(0, 256, (*served.size, 3), dtype=np.uint8)
    ids = model.text.encode([model.chat("what")], [1], served)[0]
    return [[Image.fromarray(noise)]], [model.chat(" ".join(["what"] * (PROMPT - len(ids) + 1)))]


def _bundles(bundle: Path, threads: int) -> dict[str, dict[str, float]]:
    """Times of each form as it is run, in turns, and how far its logits are off, as a share of the largest.

    They are compared with those of every expert in the form's precision, inputs not rounded, and in float32.

    Raises
    ------
    VtcError
        If forms of a precision that round no inputs answer otherwise, or are further off than the order of sums.
    """
    wanted = {name: _checked(bundle, name, threads) for name in PRECISIONS}
    models = {form: _open(bundle, form, threads) for form in FORMS}
    asked = _question(next(iter(models.values())))
    found: dict[str, list[Any]] = {form: [] for form in FORMS}
    for _ in range(UNTIMED + ROUNDS):
        for form, model in models.items():
            found[form].append(model.generate(*asked, STEPS)[0].timings)
    results = {}
    for form, model in models.items():
        name = FORMS[form][0]
        timed = found[form][UNTIMED:]
        tokens, logits = wanted[name]
        base, others = wanted["fp32"]
        results[form] = {
            "prefill_ms": median(one.prefill_ms for one in timed),
            "step_ms": median(step for one in timed for step in one.step_ms),
            "logits_off": _off(model.score(*asked, [tokens])[0], logits),
            "from_fp32": _off(model.score(*asked, [base])[0], others),
            "files_mb": model.manifest.graph_bytes(model.backend.variant) / 2**20,
        }
    return results


def _checked(bundle: Path, name: str, threads: int) -> tuple[list[int], Any]:
    """Answer and logits along it of every expert in a precision, once all forms have been compared with them."""
    from vtc.errors import VtcError

    model = _open(bundle, name, threads, exact=True)
    asked = _question(model)
    tokens = list(model.generate(*asked, STEPS)[0].token_ids)
    logits = model.score(*asked, [tokens])[0]
    for form in [form for form, (of, how) in FORMS.items() if of == name and how != EVERY]:
        model = _open(bundle, form, threads, exact=True)
        off = _off(model.score(*asked, [tokens])[0], logits)
        if off > CLOSE or list(model.generate(*asked, STEPS)[0].token_ids) != tokens:
            raise VtcError(f"{form}: logits are off by {off:.2g} of the largest, or the answer is another one")
    return tokens, logits


def _off(logits: Any, wanted: Any) -> float:
    return float(np.abs(logits - wanted).max() / np.abs(wanted).max())


def _pytorch(path: Path, threads: int) -> dict[str, dict[str, float | None]]:
    """Milliseconds of one layer's mixture in each of PyTorch's forms, in turns."""
    import torch

    from vtc.errors import VtcError
    from vtc.models import load_adapter
    from vtc.models.parts.experts import EVERY_EXPERT

    torch.set_num_threads(threads)
    layer: Any = load_adapter(path).decoder_layers[0]
    results: dict[str, dict[str, float | None]] = {form: {} for form in TORCH}
    for tokens in (PROMPT, 1):
        hidden = torch.randn(1, tokens, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0))
        took: dict[str, list[float]] = {form: [] for form in TORCH}
        outputs: dict[str, torch.Tensor] = {}
        for _ in range(UNTIMED + ROUNDS):
            for form in TORCH:
                if form == "batched_mm" and tokens > 1:  # gathers the matrices of each token: 12 GB of a prompt's
                    continue
                layer.mlp.experts.config._experts_implementation = EVERY_EXPERT if form == "every expert" else form
                with torch.inference_mode():
                    begin = perf_counter()
                    outputs[form] = layer.mlp(hidden)
                    took[form].append((perf_counter() - begin) * 1000)
        for form, output in outputs.items():
            if (output - outputs["eager"]).abs().max() > CLOSE * outputs["eager"].abs().max():
                raise VtcError(f"{form}: computes something else")
        for form, times in took.items():
            results[form][f"{tokens}_ms"] = median(times[UNTIMED:]) if times else None
    return results


def _reference(work: Path) -> dict[str, dict[str, Any]]:
    """Accuracy of the reference model's mixture in few bits, as it is run, on questions that nothing was rounded by."""
    from docs.studies.precision import answer
    from vtc.api.compression import compress
    from vtc.api.exporting import export
    from vtc.bundle.manifest import load_manifest
    from vtc.data.datasets import load_dataset
    from vtc.evaluate import stats
    from vtc.recipe import NONE

    bundle = work / "reference"
    if not bundle.exists():
        compress("reference-moe", NONE, out=work / "compressed")
        export(work / "compressed", out=bundle, variants=("fp32", "q4-ort", "int8-ort"))
    items = load_dataset("reference", QUESTIONS, 0, "test").items
    images = [item.image_id for item in items]
    found: dict[str, dict[str, Any]] = {}
    plain: Any = None
    for name in ("fp32", "q4-ort", "int8-ort"):
        tokens, scores = answer(bundle, "fp32-portable" if name == "fp32" else name, items)
        plain = plain or (tokens, scores)
        found[name] = {
            "accuracy": float(scores.mean()),
            "retention": float(scores.sum() / plain[1].sum()),
            "ci95": list(stats.ratio_interval(scores, plain[1], images, seed=0) or ()),
            "equal_answers": float(np.mean([a == b for a, b in zip(tokens, plain[0], strict=True)])),
            "files_mb": load_manifest(bundle, verify=False).graph_bytes(name) / 2**20,
        }
    return found


def _memory_apart(options: argparse.Namespace, form: str) -> dict[str, float]:
    command = [sys.executable, "-m", "docs.studies.sparse_experts", "--work", str(options.work), "--memory-of", form]
    told = subprocess.run([*command, "--threads", str(options.threads)], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return found


def _memory(bundle: Path, form: str, threads: int) -> dict[str, float]:
    """MiB of a process: resident at its peak; after an answer in memory of its own, and of files that it maps.

    Two sessions that map one file share its pages. The peak counts such pages for each, the last figure once.
    """
    model = _open(bundle, form, threads)
    model.generate(*_question(model), STEPS)
    lines = [line for name in ("status", "smaps_rollup") for line in Path("/proc/self", name).read_text().splitlines()]
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {"peak_mb": "VmHWM", "own_mb": "Pss_Anon", "mapped_mb": "Pss_File"}
    return {name: int(told[entry].split()[0]) / 1024 for name, entry in names.items()}


if __name__ == "__main__":
    main()

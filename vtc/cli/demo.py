"""The main job from end to end on the reference VLM: ``python -m vtc.cli.demo -o out/demo``, or ``make demo``.

Runs the commands a user would type, prints each of them, and ends with one table of what came out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vtc.errors import GateFailed, GateInconclusive, InputError

RECIPE = "learnpruner"
PARITY_PROMPTS = 64
ASKED = 3
JUDGED = (0, GateFailed.exit_code, GateInconclusive.exit_code)
"""Exit codes of `vtc validate` that are a verdict and not a fault; the demo reports each of them."""


def run(*arguments: str | Path, allowed: tuple[int, ...] = (0,)) -> int:
    """Run a command of vtc's in a process of its own, as a shell would, and stop the demo if it fails."""
    print(f"\n$ vtc {' '.join(map(str, arguments))}", flush=True)
    code = subprocess.run([sys.executable, "-m", "vtc.cli", *map(str, arguments)], check=False).returncode
    if code not in allowed:
        sys.exit(code)
    return code


def draw(count: int, out: Path) -> list[dict[str, Any]]:
    """Draw scenes of the test split, and return their questions."""
    command = ["-m", "vtc.reference.scenes", "--split", "test", "--seed", "1", "--count", str(count), "-o", str(out)]
    print(f"\n$ python {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], check=True)
    return [json.loads(line) for line in (out / "data.jsonl").read_text(encoding="utf-8").splitlines()]


def summarise(out: Path, recipe: str, began: float) -> dict[str, Any]:
    """Gather the figures of the reports that the commands wrote."""
    manifest = json.loads((out / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    validated = json.loads((out / "validate.json").read_text(encoding="utf-8"))
    measured = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    result = validated["results"]["bundle"]
    original, bundle = measured["runs"][:2]
    parity = manifest["parity"]["fp32"]
    return {
        "recipe": recipe,
        "tokens_in": manifest["plan"]["visual_tokens_in"],
        "keep": manifest["plan"]["keep"],
        "layer_average": manifest["plan"]["layer_average"],
        "accuracy_base": result["base"],
        "accuracy": result["accuracy"],
        "retention": result["retention"],
        "retention_ci95": result["ci95"],
        "questions": result["n"],
        "gate": validated["gate"]["status"],
        "baselines": {name: figures["accuracy"] for name, figures in validated["baselines"].items()},
        "greedy_match": parity["greedy_match"],
        "logits_max_diff": parity["logits_max_diff"],
        "ttft_ms_base": original["ttft_ms"]["p50"],
        "ttft_ms": bundle["ttft_ms"]["p50"],
        "ttft_speedup": measured["speedup"]["ttft"],
        "flops_base": manifest["baseline_plan"]["flops"]["exact"],
        "flops": manifest["plan"]["flops"]["exact"],
        "seconds": round(time.monotonic() - began, 1),
    }


def show(summary: dict[str, Any]) -> None:
    """Print the closing table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"reference VLM, recipe {summary['recipe']}", title_justify="left")
    for heading in ("", "original", "compressed"):
        table.add_column(heading, justify="left" if not heading else "right")
    speedup = f"{summary['ttft_ms']:.1f} ms ({summary['ttft_speedup']:.2f}x)"
    low, high = summary["retention_ci95"]
    table.add_row("visual tokens into the decoder", str(summary["tokens_in"]), str(summary["keep"]))
    table.add_row("visual tokens, mean over its layers", str(summary["tokens_in"]), f"{summary['layer_average']:.3g}")
    table.add_row("prefill FLOPs", f"{summary['flops_base'] / 1e9:.2f} G", f"{summary['flops'] / 1e9:.2f} G")
    table.add_row(
        f"accuracy ({summary['questions']} questions)", f"{summary['accuracy_base']:.1%}", f"{summary['accuracy']:.1%}"
    )
    table.add_row("retention [95 % interval]", "", f"{summary['retention']:.1%} [{low:.1%}, {high:.1%}]")
    for name, accuracy in summary["baselines"].items():
        table.add_row(f"  {name} at the same budget" if name != "blind" else "  blind", "", f"{accuracy:.1%}")
    table.add_row("time to first token (ONNX Runtime)", f"{summary['ttft_ms_base']:.1f} ms", speedup)
    table.add_row("greedy answers equal to PyTorch's", "", f"{summary['greedy_match']:.0%}")
    Console().print(table)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m vtc.cli.demo", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/demo"), help="where everything is written")
    parser.add_argument("--recipe", default=RECIPE, help=f"a shipped recipe or a YAML file (default: {RECIPE})")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    bundle = out / "bundle"
    run("inspect", "reference", "--recipe", options.recipe)
    run("compress", "reference", "--recipe", options.recipe, "-o", out / "compressed")
    run("export", out / "compressed", "-o", bundle, "--samples", str(PARITY_PROMPTS))
    questions = draw(ASKED, out / "scenes")
    for question in questions:
        run("run", bundle, "--image", out / "scenes" / question["image"], "--prompt", question["question"])
        print(f"(the right answer: {question['answers'][0]})", flush=True)
    picture, asked = out / "scenes" / questions[0]["image"], questions[0]["question"]
    # A recipe that mixes tokens keeps no places to show.
    run("show", picture, bundle, "--prompt", asked, "-o", out / "kept.png", allowed=(0, InputError.exit_code))
    run("validate", bundle, "--against", "reference", "-o", out / "validate.json", allowed=JUDGED)
    run("bench", bundle, "--against", "reference", "-o", out / "bench.json")
    summary = summarise(out, options.recipe, began)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print()
    show(summary)
    print(f"Everything is in {out}: compressed/, bundle/, scenes/, kept.png, validate.json, bench.json, summary.json")


if __name__ == "__main__":
    main()

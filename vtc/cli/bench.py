"""``vtc bench``: latency and memory, side by side with the original."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from vtc.cli.budget_options import keep_option
from vtc.cli.runtime_options import runtime_flags
from vtc.cli.verb import verb
from vtc.errors import InputError
from vtc.models.random.shapes import SHAPES
from vtc.runtime.options import RuntimeOptions

OF_BUNDLE = {
    "against": "--against",
    "images": "--image",
    "prompt": "--prompt",
    "keep": "--keep",
    "provider": "--provider",
    "engines": "--engines",
}
OF_SHAPE = {
    "recipe": "--recipe",
    "overrides": "--set",
    "text_tokens": "--text-tokens",
    "device": "--device",
    "work": "--work",
    "cuda_graphs": "--cuda-graphs",
}
"""Options that go with one of the two only, by argument."""

NOT_WITH = {
    "torch": "goes with --shape: a bundle is run without PyTorch",
    "openvino": "goes with a BUNDLE: keep those of the shape with --work DIR, and bench them",
    "tensorrt": "goes with a BUNDLE: keep those of the shape with --work DIR, run vtc build on each, and bench them",
}
"""Why a backend cannot run everything that can be timed."""


@verb("Latency and memory, side by side with the original.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="MODEL|BUNDLE",
    help="The original to compare with: 'reference', a checkpoint, or a bundle.  [default: the bundle is timed alone]",
)
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="Image to ask about.")
@click.option("--prompt", help="Question to ask.  [default: questions about reference scenes]")
@keep_option("each of them, side by side")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Answer length.")
@click.option("--repeats", type=click.IntRange(min=1), help="Rounds measured.  [default: 50; 10 with --shape]")
@click.option("--warmup", type=click.IntRange(min=0), help="Rounds before those.  [default: 3; 1 with --shape]")
@click.option("--shape", type=click.Choice(list(SHAPES)), help="Time a published shape instead.")
@click.option("--recipe", metavar="R", help="Recipe for --shape.  [default: learnpruner]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe.")
@click.option("--text-tokens", type=click.IntRange(min=1), help="Text in the prompt of a --shape.  [default: 32]")
@runtime_flags("torch", note=", or (a --shape alone) PyTorch")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where a --shape runs.  [default: cpu]")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Keep the bundles of a --shape here.")
@click.option("--cuda-graphs", is_flag=True, default=None, help="A --shape as CUDA graphs, in PyTorch.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the report to a JSON file.")
def command(
    bundle: Path | None, shape: str | None, runtime: RuntimeOptions, as_json: bool, out: Path | None, **asked: Any
) -> None:
    r"""Time a bundle and the original in turn, in one run, and measure each one's peak memory.

    A checkpoint given with --against is exported as it is, in the bundle's precision, so that both run in the
    same runtime; that export is kept in the user's cache directory for the next time. A bundle of several budgets is
    timed at each of them, in the same turns.

    With --shape there is no bundle: a model of a published shape is built with random weights, on which speed does
    not depend, and timed as it is and with a recipe, beside what the plan predicts.

    \b
    vtc bench out/bundle --against reference
    vtc bench out/bundle --against out/original --image photo.jpg --prompt "What is this?"
    vtc bench --shape llava-onevision-0.5b --set budget.keep_average=0.11
    """
    from vtc.cli.report import bench_tables, print_report
    from vtc.writing import check_place

    check_place(out)
    given = {name: value for name, value in asked.items() if value not in (None, ())}
    if bundle is not None and shape is None:
        report = _of_bundle(bundle, runtime, given)
    elif shape is not None and bundle is None:
        report = _of_shape(shape, runtime, given)
    else:
        raise InputError("give a BUNDLE or --shape NAME, one of the two")
    print_report(report, bench_tables, as_json, out)


def _of_bundle(bundle: Path, runtime: RuntimeOptions, given: dict[str, Any]) -> dict[str, Any]:
    import vtc
    from vtc.progress import progress

    _refuse(given, OF_SHAPE, runtime.backend, ("torch",), "--shape")
    with progress() as tell:
        return vtc.bench(bundle, runtime=runtime, progress=tell, **given)


def _of_shape(name: str, runtime: RuntimeOptions, given: dict[str, Any]) -> dict[str, Any]:
    from vtc.benchmark.shape import DEFAULT_RECIPE, ROUNDS, Job, bench_shape
    from vtc.progress import progress
    from vtc.recipe import load_recipe

    own = {"provider": runtime.provider, "engines": runtime.engines}
    placed = given | {key: value for key, value in own.items() if value is not None}
    _refuse(placed, OF_BUNDLE, runtime.backend, ("openvino", "tensorrt"), "a BUNDLE")
    rounds = {key: given.pop(key) for key in ("repeats", "warmup", "max_new_tokens", "memory") if key in given}
    job = Job(
        SHAPES[name],
        load_recipe(given.pop("recipe", DEFAULT_RECIPE), given.pop("overrides", ())),
        replace(ROUNDS, **rounds),
        backend=runtime.backend,
        precision=runtime.precision or "",
        threads=runtime.threads,
        **given,
    )
    with progress() as tell:
        return bench_shape(job, tell)


def _refuse(given: dict[str, Any], others: dict[str, str], backend: str, foreign: Collection[str], owner: str) -> None:
    """Refuse options, and a backend, that go with the other of the two.

    Raises
    ------
    InputError
    """
    for name, option in others.items():
        if name in given:
            raise InputError(f"{option} goes with {owner}")
    if backend in foreign:
        raise InputError(f"--backend {backend} {NOT_WITH[backend]}")

"""``vtc bench``: latency and memory, side by side with the original."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtc.cli.running import backend_options
from vtc.cli.versions import package_version
from vtc.models.random.shapes import SHAPES
from vtc.runtime import BACKENDS

if TYPE_CHECKING:
    from vtc.benchmark.timing import BenchPrompt
    from vtc.progress import Report
    from vtc.runtime.vlm import VLM

REFERENCE_QUESTIONS = 8
PARITY_SAMPLES = 4
NOT_WITH = {
    "torch": "goes with --shape: a bundle is run without PyTorch",
    "tensorrt": "goes with a BUNDLE: keep those of the shape with --work DIR, run vtc build on each, and bench them",
}
"""Why a backend cannot run everything that can be timed."""


@click.command(short_help="Latency and memory, side by side with the original.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--against", metavar="MODEL|BUNDLE", help="The original: 'reference', a checkpoint, or a bundle.")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="Image to ask about.")
@click.option("--prompt", help="Question to ask.  [default: questions about reference scenes]")
@click.option("--new-tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Answer length.")
@click.option("--repeats", type=click.IntRange(min=1), help="Rounds measured.  [default: 50; 10 with --shape]")
@click.option("--warmup", type=click.IntRange(min=0), help="Rounds before those.  [default: 3; 1 with --shape]")
@click.option("--provider", help="ONNX Runtime provider of a bundle.")
@click.option("--precision", help="Which of the bundle's precisions to run; also bf16 with --backend torch.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one operator.")
@click.option("--shape", "shape_name", type=click.Choice(list(SHAPES)), help="Time a published shape instead.")
@click.option("--recipe", "recipe_name", metavar="R", help="Recipe for --shape.  [default: learnpruner]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe.")
@click.option("--text-tokens", type=click.IntRange(min=1), help="Text in the prompt of a --shape.  [default: 32]")
@backend_options("torch", note=", or (a --shape alone) PyTorch")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where a --shape runs.  [default: cpu]")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Keep the bundles of a --shape here.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write a JSON report.")
def command(
    bundle: Path | None,
    against: str | None,
    images: tuple[Path, ...],
    prompt: str | None,
    new_tokens: int,
    repeats: int | None,
    warmup: int | None,
    provider: str | None,
    precision: str | None,
    threads: int | None,
    shape_name: str | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    text_tokens: int | None,
    backend: str | None,
    engines: Path | None,
    device: str | None,
    work: Path | None,
    memory: bool,
    as_json: bool,
    output: Path | None,
) -> None:
    r"""Time a bundle and the original in turn, in one run, and measure each one's peak memory.

    A checkpoint given with --against is exported as it is, in the bundle's precision, so that both run in the
    same runtime; that export is kept in the user's cache directory for the next time.

    With --shape there is no bundle: a model of a published shape is built with random weights, on which speed does
    not depend, and timed as it is and with a recipe, beside what the plan predicts.

    \b
    vtc bench out/bundle --against reference
    vtc bench out/bundle --against out/original --image photo.jpg --prompt "What is this?"
    vtc bench --shape llava-onevision-0.5b --set budget.keep_average=0.11
    """
    from vtc.cli.report import bench_tables, print_tables, to_json, write_json
    from vtc.errors import InputError

    if (bundle is None) == (shape_name is None):
        raise InputError("give a BUNDLE or --shape NAME, one of the two")
    of_bundle: dict[str, Any] = {"--against": against, "--image": images, "--prompt": prompt}
    of_bundle |= {"--provider": provider, "--engines": engines}
    of_shape = {
        "--recipe": recipe_name,
        "--set": overrides,
        "--text-tokens": text_tokens,
        "--device": device,
        "--work": work,
    }
    for option, value in (of_shape if shape_name is None else of_bundle).items():
        if value:
            raise InputError(f"{option} goes with {'--shape' if shape_name is None else 'a BUNDLE'}")
    backend = backend or BACKENDS[0]
    if backend == ("torch" if shape_name is None else "tensorrt"):
        raise InputError(f"--backend {backend} {NOT_WITH[backend]}")
    if bundle is not None:
        asked = (against, images, prompt, new_tokens, repeats or 50, 3 if warmup is None else warmup)
        options = {"provider": provider, "precision": precision, "threads": threads, "backend": backend}
        report = _bench_bundle(bundle, *asked, options, engines, memory)
    else:
        from vtc.benchmark.shape import DEFAULT_RECIPE, PRECISIONS, Job, bench_shape
        from vtc.progress import progress
        from vtc.recipe import load_recipe

        shape = SHAPES[str(shape_name)]
        job = Job(
            shape=shape,
            recipe=load_recipe(recipe_name or DEFAULT_RECIPE, overrides),
            text_tokens=text_tokens or 32,
            new_tokens=new_tokens,
            repeats=repeats or 10,
            warmup=1 if warmup is None else warmup,
            backend=backend,
            device=device or "cpu",
            precision=precision or PRECISIONS[backend][0],
            threads=threads,
            memory=memory,
            work=work,
        )
        with progress() as show:
            report = bench_shape(job, show)
        report["environment"] = _environment(job.device, threads) | _torch(job.device)
    if output is not None:
        write_json(report, output)
    if as_json:
        click.echo(to_json(report))
    else:
        print_tables(bench_tables(report))


def _bench_bundle(
    bundle: Path,
    against: str | None,
    images: tuple[Path, ...],
    prompt: str | None,
    new_tokens: int,
    repeats: int,
    warmup: int,
    options: dict[str, Any],
    engines: Path | None,
    memory: bool,
) -> dict[str, Any]:
    from vtc.benchmark.memory import measure_memory
    from vtc.benchmark.report import bench
    from vtc.benchmark.timing import runner
    from vtc.progress import progress
    from vtc.runtime.vlm import VLM

    questions = _questions(images, prompt)
    with progress() as show:
        model = VLM.load(bundle, **options, engines=engines)
        options = options | {"precision": model.precision}
        own = {} if engines is None else {"engines": str(engines.absolute())}  # an original has engines of its own
        paths = [bundle]
        original = None
        if against is not None:
            paths.insert(0, _original(against, model, show))
            original = VLM.load(paths[0], **options)
        memories = []
        for number, path in enumerate(paths):
            show("peak memory", number, len(paths))
            first = questions[0]
            loading = options | (own if path is bundle else {})
            measured = measure_memory(path, first.images, first.text, new_tokens, loading) if memory else None
            memories.append(measured)
        show("peak memory", len(paths), len(paths))
        report = bench(
            None if original is None else runner(_name(original, model), original, questions, new_tokens),
            runner(bundle.resolve().name, model, questions, new_tokens),
            questions=len(questions),
            repeats=repeats,
            warmup=warmup,
            memories=memories,
            progress=show,
        )
    environment = _environment(model.provider, options["threads"])
    if options["backend"] == "tensorrt":
        environment[model.provider] = package_version(model.provider)
    return report | {"environment": environment}


def _questions(images: tuple[Path, ...], prompt: str | None) -> list[BenchPrompt]:
    from vtc.benchmark.timing import BenchPrompt
    from vtc.data.datasets import load_dataset
    from vtc.errors import InputError
    from vtc.runtime.image import open_image

    if images:
        return [BenchPrompt(tuple(map(open_image, images)), prompt or "What is in the image?")]
    if prompt is not None:
        raise InputError("--prompt needs --image")
    items = load_dataset("reference", REFERENCE_QUESTIONS, seed=0).items
    return [BenchPrompt((item.load(),), item.question) for item in items]


def _original(against: str, model: VLM, show: Report) -> Path:
    """The bundle to compare with: the one that was given, or the checkpoint exported without compression."""
    from vtc.errors import InputError
    from vtc.evaluate.contestants import manifest_of

    manifest = manifest_of(Path(against))
    if manifest is None:
        return _exported(against, model, show)
    if manifest["kind"] != "bundle":
        raise InputError(f"{against}: is a compressed model; give its checkpoint, or a bundle that vtc export made")
    return Path(against)


def _name(original: VLM, model: VLM) -> str:
    """``original`` for the very checkpoint that the model was made from, uncompressed; else the bundle's own name."""
    manifest = original.manifest
    same = manifest.model["sha256"] == model.manifest.model["sha256"] and not manifest.recipe["stages"]
    return "original" if same else manifest.root.resolve().name


def _exported(name: str, bundle: VLM, show: Report) -> Path:
    from vtc import __version__
    from vtc.bundle.manifest import load_manifest
    from vtc.cache import cache_dir
    from vtc.errors import BundleError, InputError
    from vtc.evaluate.contestants import served_by
    from vtc.facts.layout import ANY_IMAGE
    from vtc.models import model_digest, resolve_model

    path = resolve_model(name)
    digest = model_digest(path)
    if digest != bundle.manifest.model["sha256"]:
        raise InputError(f"{bundle.manifest.root}: was made from another checkpoint than {name}; give that one")
    wanted = served_by({"model": bundle.manifest.model})
    layout = "" if wanted == ANY_IMAGE else "-" + re.sub(r"\W+", "-", repr(wanted)).strip("-").lower()
    out = cache_dir() / "originals" / f"{digest[:16]}-{bundle.precision}-{__version__}{layout}"
    try:
        if load_manifest(out).model["sha256"] == digest:
            return out
    except BundleError:
        pass  # not there yet, or damaged: either way it is made now
    from exporters.onnx import ExportRequest, export
    from vtc.compressed.build import apply_recipe
    from vtc.compressed.checkpoint import Origin
    from vtc.data.samples import samples_from
    from vtc.models import load_adapter
    from vtc.recipe import Recipe

    out.parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"exporting the original to {out}", err=True)
    adapter = load_adapter(path, wanted)
    recipe = Recipe(version=1, name="none", stages=())
    own = Origin(name if name == "reference" else str(path.resolve()), digest)
    samples = samples_from(adapter, "reference" if name == "reference" else None, PARITY_SAMPLES, seed=0)
    model = apply_recipe(adapter, recipe)
    export(ExportRequest([model], recipe, own, samples, (bundle.precision,), progress=show), out)
    return out


def _torch(device: str) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else None
    return {"torch": torch.__version__, "gpu": gpu}


def _environment(provider: str, threads: int | None) -> dict[str, Any]:
    import platform

    import onnxruntime

    return {
        "onnxruntime": onnxruntime.__version__,
        "provider": provider,
        "threads": threads,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
    }

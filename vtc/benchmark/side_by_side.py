"""A bundle timed beside the original: the same questions, in the same runtime, in one run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtc import __version__
from vtc.benchmark.environment import environment
from vtc.benchmark.memory import measure_memory
from vtc.benchmark.report import Rounds, bench
from vtc.benchmark.timing import BenchPrompt, runner
from vtc.bundle.manifest import load_manifest
from vtc.cache import cache_dir
from vtc.errors import BundleError, InputError
from vtc.evaluate.contestants import layouts_of, manifest_of
from vtc.facts.layout import ANY_IMAGE
from vtc.progress import Report, silent
from vtc.reference import is_shipped
from vtc.runtime.image import ImageLike, open_image
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.vlm import VLM

REFERENCE_QUESTIONS = 8
PARITY_SAMPLES = 4


def bench_bundle(
    bundle: Path,
    against: str | None,
    prompts: Sequence[BenchPrompt],
    rounds: Rounds = Rounds(),
    options: RuntimeOptions = RuntimeOptions(),
    progress: Report = silent,
    keep: int | None = None,
) -> dict[str, Any]:
    """Time a bundle at each of its budgets, and the original beside it.

    Parameters
    ----------
    bundle : Path
    against : str or None
        A bundle, ``reference`` or a checkpoint's directory; a checkpoint is exported as it is, in the precision
        of the bundle's graphs, and that export is kept in the user's cache directory. None times the bundle alone.
    prompts : sequence of BenchPrompt
    rounds : Rounds
    options : RuntimeOptions
        Of the bundle; the original runs in the same precision, on engines of its own.
    progress : callable
    keep : int or None
        The one budget to time of a bundle that has several.

    Returns
    -------
    dict
        The report of :func:`vtc.benchmark.report.bench`, with ``environment``.

    Raises
    ------
    InputError
        If the bundle has no such budget, or was made from another checkpoint.
    """
    model, name = VLM.load(bundle, options), bundle.resolve().name
    budgets: Sequence[int | None] = model.budgets or (None,) if keep is None else (keep,)
    views = [model if one is None else model.at_budget(one) for one in budgets]
    options = replace(options, precision=model.precision)
    loaded: list[tuple[Path, RuntimeOptions, int | None]] = [(bundle, options, one) for one in budgets]
    original = None
    if against is not None:
        path, own = original_bundle(against, model, progress), replace(options, engines=None)
        loaded.insert(0, (path, own, None))
        original = VLM.load(path, own)
    memories = []
    for number, (path, own, one) in enumerate(loaded):
        progress("peak memory", number, len(loaded))
        asked = path, prompts[0].images, prompts[0].text, rounds.max_new_tokens, own, one
        memories.append(measure_memory(*asked) if rounds.memory else None)
    progress("peak memory", len(loaded), len(loaded))
    names = [name if one is None else f"{name} at {one}" for one in budgets]
    report = bench(
        None if original is None else runner(_name(original, model), original, prompts, rounds.max_new_tokens),
        *(runner(*named, prompts, rounds.max_new_tokens) for named in zip(names, views, strict=True)),
        questions=len(prompts),
        repeats=rounds.repeats,
        warmup=rounds.warmup,
        memories=memories,
        progress=progress,
    )
    return report | {"environment": environment(model.provider, options.threads)}


def bench_prompts(images: Sequence[ImageLike], question: str | None) -> list[BenchPrompt]:
    """Make the questions to time: one about given images, or some about scenes of the reference model.

    Raises
    ------
    InputError
        If there is a question and no image.
    """
    from vtc.data.datasets import load_dataset

    if images:
        opened = tuple(open_image(image) for image in images)
        return [BenchPrompt(opened, question or "What is in the image?")]
    if question is not None:
        raise InputError("--prompt needs --image")
    items = load_dataset("reference", REFERENCE_QUESTIONS, seed=0).items
    return [BenchPrompt((item.load(),), item.question) for item in items]


def original_bundle(against: str, model: VLM, progress: Report = silent) -> Path:
    """Find the bundle to compare with: the one that is named, or the named checkpoint exported without compression.

    Raises
    ------
    InputError
        If it is a compressed model that was not exported, or the bundle was made from another checkpoint.
    """
    manifest = manifest_of(Path(against))
    if manifest is None:
        return _exported(against, model, progress)
    if manifest["kind"] != "bundle":
        raise InputError(f"{against}: is a compressed model; give its checkpoint, or a bundle that vtc export made")
    return Path(against)


def _name(original: VLM, model: VLM) -> str:
    """``original`` for the very checkpoint that the model was made from, uncompressed; else the bundle's own name."""
    manifest = original.manifest
    same = manifest.model["sha256"] == model.manifest.model["sha256"] and not manifest.recipe["stages"]
    return "original" if same else manifest.root.resolve().name


def _exported(name: str, bundle: VLM, progress: Report) -> Path:
    from vtc.models import model_digest, resolve_model

    path = resolve_model(name)
    digest = model_digest(path)
    if digest != bundle.manifest.model["sha256"]:
        raise InputError(f"{bundle.manifest.root}: was made from another checkpoint than {name}; give that one")
    served = [{"size": one.size} for one in bundle.manifest.images]
    wanted = layouts_of({"model": bundle.manifest.model, "images": served})
    layout = "" if wanted == [ANY_IMAGE] else "-" + hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]
    out = cache_dir() / "originals" / f"{digest[:16]}-{bundle.backend.exported}-{__version__}{layout}"
    try:
        if load_manifest(out).model["sha256"] == digest:
            return out
    except BundleError:
        pass  # not there yet, or damaged: either way it is made now
    from exporters.onnx import ExportRequest, export
    from vtc.compressed.build import apply_recipe
    from vtc.compressed.checkpoint import Origin
    from vtc.data.datasets import data_for
    from vtc.data.samples import samples_from
    from vtc.models import load_adapter
    from vtc.recipe import NONE

    out.parent.mkdir(parents=True, exist_ok=True)
    adapter = load_adapter(path, wanted[0])
    origin = Origin(name if is_shipped(name) else str(path.resolve()), digest)
    samples = samples_from(adapter, data_for(name), PARITY_SAMPLES, seed=0)
    models = [apply_recipe(one, NONE) for one in (adapter, *map(adapter.with_image_options, wanted[1:]))]

    def tell(label: str, done: int, total: int) -> None:
        progress(f"the original: {label}", done, total)

    export(ExportRequest(models, NONE, origin, samples, (bundle.backend.exported,), progress=tell), out)
    return out

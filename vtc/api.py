"""What the verbs of ``vtc`` do, as functions: a checkpoint and a recipe in, a bundle and proof out.

Nothing of it needs a terminal; the command line calls these functions and adds words. PyTorch is imported where it is
needed, so that a bundle is run, timed and judged without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.compressed.inspection import TEXT_TOKENS, Inspection, finished, is_finished, planned
from vtc.errors import InputError
from vtc.evaluate.contestants import BASELINES
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.progress import Report, silent
from vtc.recipe import Recipe, load_recipe, parse_recipe
from vtc.runtime.options import RuntimeOptions

if TYPE_CHECKING:
    from exporters.parity import Parity
    from vtc.evaluate.validate import Thresholds
    from vtc.plan import TokenPlan
    from vtc.runtime.vlm import VLM, ImageLike


@dataclass(frozen=True)
class CompressResult:
    """What :func:`compress` made.

    Attributes
    ----------
    path : Path
        The directory written.
    plan : TokenPlan
        Tokens at every stage and decoder layer, FLOPs, KV bytes.
    recipe : Recipe
        With a value for everything that was left ``auto``.
    """

    path: Path
    plan: TokenPlan
    recipe: Recipe


@dataclass(frozen=True)
class ExportResult:
    """What :func:`export` made.

    Attributes
    ----------
    path : Path
        The bundle's directory.
    parity : dict of str to Parity
        For each precision, how far the bundle is from the model in PyTorch.
    """

    path: Path
    parity: dict[str, Parity]


def compress(
    model: str | Path,
    recipe: str | Path | Recipe,
    *,
    out: str | Path,
    data: str | Path | None = None,
    image_options: ImageOptions = ANY_IMAGE,
    samples: int = 64,
    seed: int = 0,
    retrain: bool = False,
    overrides: Sequence[str] = (),
    progress: Report = silent,
) -> CompressResult:
    """Apply a recipe to a model, and calibrate or train what it leaves open.

    An interrupted run is taken up again by the same call.

    Parameters
    ----------
    model : str or Path
        ``reference``, or a checkpoint's directory.
    recipe : str, Path or Recipe
        Name of a shipped recipe, a YAML file, or a recipe in memory.
    out : str or Path
        Directory to write; replaced if it holds a compressed model.
    data : str, Path or None
        Images and questions to calibrate on: a directory with data.jsonl, or ``reference``. None takes ``reference``
        for the reference model.
    image_options : ImageOptions
        What images the model is to be made ready for.
    samples : int
        Number of samples to calibrate on.
    seed : int
        Draws the samples.
    retrain : bool
        Whether a part is trained even where one ships with the model.
    overrides : sequence of str
        Values of the recipe to change, such as ``stages.0.keep=64``.
    progress : callable
        Called with what is being done, how much of it is done, and how much there is.

    Returns
    -------
    CompressResult

    Raises
    ------
    RecipeError
        If the recipe is wrong or does not fit the model; every fault is told before anything is loaded.
    ModelError
        If there is no such checkpoint, or its family is not supported.
    InputError
        If the recipe leaves something open and there are no data.

    Examples
    --------
    >>> import vtc
    >>> result = vtc.compress("reference", "fastervlm-25", out="out/compressed")
    >>> result.plan.visual_tokens_in, result.plan.keep
    (256, 64)
    """
    from vtc.calibrate.compress import Calibration
    from vtc.calibrate.compress import compress as run

    calibration = Calibration(None if data is None else str(data), samples, seed, retrain)
    done = run(model, _recipe(recipe, overrides), Path(out), calibration, image_options, progress)
    return CompressResult(Path(out), done.model.plan, done.recipe)


def export(
    compressed: str | Path,
    *,
    out: str | Path,
    precisions: str | Sequence[str] = "fp32",
    targets: str | Sequence[str] = (),
    opset: int = 20,
    model: str | Path | None = None,
    data: str | Path | None = None,
    samples: int = 16,
    image_options: Sequence[ImageOptions] = (),
    progress: Report = silent,
) -> ExportResult:
    """Write a compressed model as an ONNX bundle, once it computes what the model computes.

    An interrupted run is taken up again by the same call.

    Parameters
    ----------
    compressed : str or Path
        Directory that :func:`compress` wrote.
    out : str or Path
        Directory to write; replaced if it holds a bundle.
    precisions : str or sequence of str
        One or several of :data:`exporters.precision.NAMES`.
    targets : str or sequence of str
        What engines are to be built for: names of :data:`exporters.targets.TARGETS`. Graphs that one of them could not
        take are refused.
    opset : int
        ONNX operator set, 18 to 22.
    model : str, Path or None
        Where the checkpoint is now, if it has moved.
    data : str, Path or None
        Images and questions to compare on: a directory with data.jsonl, or ``reference``. None takes ``reference`` for
        the reference model, and noise for others.
    samples : int
        Number of prompts to compare on.
    image_options : sequence of ImageOptions
        Layouts of images that the bundle is to serve, the default one first; none is the one it was compressed for.
    progress : callable
        As for :func:`compress`.

    Returns
    -------
    ExportResult

    Raises
    ------
    InputError
        If a precision or target is not known or does not take the graphs.
    BundleError
        If `compressed` is incomplete or changed, or `out` holds something else than a bundle.
    ParityError
        If the graphs do not compute what the model computes. Nothing is written then.

    Examples
    --------
    >>> import vtc
    >>> result = vtc.export("out/compressed", out="out/bundle", samples=4)
    >>> result.parity["fp32"].greedy_match
    1.0
    """
    from exporters.precision import precision
    from exporters.targets import target
    from vtc.artifact import check_output

    names, found = _several(precisions), [target(name) for name in _several(targets)]
    needs_ranges = [name for name in names if precision(name).activations]
    check_output(Path(out), "bundle")
    for one in found:
        one.check_export(names, opset)

    from exporters.onnx import ExportRequest
    from exporters.onnx import export as run
    from vtc.compressed.checkpoint import for_images, load_compressed
    from vtc.data.datasets import data_for
    from vtc.data.samples import samples_from

    loaded, recipe, origin = load_compressed(Path(compressed), None if model is None else str(model))
    models = [for_images(loaded, recipe, wanted) for wanted in image_options] or [loaded]
    source = data_for(origin.name, data)
    if needs_ranges and source is None:
        raise InputError(f"{needs_ranges[0]} takes ranges of activations from samples, and noise has none; give --data")
    share = -(-samples // len(models))
    request = ExportRequest(
        models=models,
        recipe=recipe,
        origin=origin,
        samples=[sample for one in models for sample in samples_from(one.adapter, source, share, seed=0)],
        precisions=names,
        opset=opset,
        targets=found,
        progress=progress,
    )
    return ExportResult(Path(out), run(request, Path(out)))


def validate(
    target: str | Path | None,
    *,
    against: str | Path | None = None,
    data: str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    baselines: Sequence[str] = BASELINES,
    thresholds: Thresholds | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    runtime: RuntimeOptions = RuntimeOptions(),
    progress: Report = silent,
) -> dict[str, Any]:
    """Judge a bundle or a compressed model against the original, on the same questions.

    Parameters
    ----------
    target : str, Path or None
        The bundle or compressed model; None measures the original alone.
    against : str, Path or None
        The original: ``reference``, a checkpoint's directory, or an uncompressed bundle. None takes the checkpoint that
        the target was made from, where it still is.
    data : str, Path or None
        Questions: a directory with data.jsonl, or ``reference``. None takes ``reference`` for the reference model.
    samples : int or None
        Number of questions; None takes all of a directory, and 600 of ``reference``.
    seed : int
        Draws the questions and resamples.
    baselines : sequence of str
        Some of :data:`vtc.evaluate.contestants.BASELINES`; there are none against a bundle.
    thresholds : Thresholds or None
        What the gate asks for; None asks for a retention of 95 %.
    batch_size : int
        Questions at a time.
    max_new_tokens : int
        Longest answer.
    runtime : RuntimeOptions
        How a bundle is run.
    progress : callable
        As for :func:`compress`.

    Returns
    -------
    dict
        The report of :func:`vtc.evaluate.validate.validate`, ready for JSON. ``report["gate"]["status"]`` is ``pass``,
        ``fail`` or ``inconclusive``; a failed gate raises nothing.

    Raises
    ------
    InputError
        If something is missing, of the wrong kind, or made from another checkpoint.

    Examples
    --------
    >>> import vtc
    >>> report = vtc.validate("out/bundle", samples=60, baselines=["random"])
    >>> report["results"]["bundle"]["retention"] > report["baselines"]["random"]["retention"]
    True
    >>> report["gate"]["status"]
    'inconclusive'
    """
    from vtc.data.datasets import data_for, load_dataset
    from vtc.evaluate.contestants import checkpoint_name, open_comparison
    from vtc.evaluate.validate import Effort, Thresholds
    from vtc.evaluate.validate import validate as run

    named = None if target is None else str(target)
    origin = None if against is None else str(against)
    if data is None and (data := data_for(model := checkpoint_name(named, origin))) is None:
        raise InputError(f"say what to ask {model}: --data DIR with data.jsonl; drawn digits are for 'reference' alone")
    dataset = load_dataset(data, samples, seed)
    field = open_comparison(named, origin, baselines, seed, runtime)
    return run(
        field.original,
        field.compressed,
        field.baselines,
        dataset,
        limits=thresholds or Thresholds(),
        seed=seed,
        effort=Effort(batch_size, max_new_tokens),
        progress=progress,
        left_out=field.left_out,
    )


def bench(
    bundle: str | Path,
    *,
    against: str | Path | None = None,
    images: Sequence[ImageLike] = (),
    prompt: str | None = None,
    max_new_tokens: int = 32,
    repeats: int = 50,
    warmup: int = 3,
    memory: bool = True,
    runtime: RuntimeOptions = RuntimeOptions(),
    progress: Report = silent,
) -> dict[str, Any]:
    """Time a bundle and the original in turn, in one run, and measure each one's peak memory.

    Parameters
    ----------
    bundle : str or Path
    against : str, Path or None
        The original: ``reference``, a checkpoint's directory, or a bundle. A checkpoint is exported as it is, and that
        export is kept in the user's cache directory. None times the bundle alone.
    images : sequence of path or PIL image
        Images of one question; without any, questions about scenes of the reference model are asked.
    prompt : str or None
        The question about `images`.
    max_new_tokens : int
        Length of every answer: end tokens are ignored, so that all are of the same length.
    repeats, warmup : int
        Rounds that count, and rounds before them that do not.
    memory : bool
        Whether peak memory is measured, each model in a process of its own.
    runtime : RuntimeOptions
        How the bundle is run; the original runs in the same precision, on engines of its own.
    progress : callable
        As for :func:`compress`.

    Returns
    -------
    dict
        The report of :func:`vtc.benchmark.side_by_side.bench_bundle`, ready for JSON.

    Raises
    ------
    InputError
        If something is missing, or the bundle was made from another checkpoint.

    Examples
    --------
    >>> import vtc
    >>> report = vtc.bench("out/bundle", repeats=3, max_new_tokens=4, memory=False)
    >>> report["runs"][0]["visual_tokens"]
    64
    """
    from vtc.benchmark.report import Rounds
    from vtc.benchmark.side_by_side import bench_bundle, bench_prompts

    rounds = Rounds(repeats, warmup, max_new_tokens, memory)
    origin = None if against is None else str(against)
    return bench_bundle(Path(bundle), origin, bench_prompts(images, prompt), rounds, runtime, progress)


def inspect(
    target: str | Path,
    recipe: str | Path | Recipe | None = None,
    *,
    overrides: Sequence[str] = (),
    text_tokens: int | None = None,
    image_options: ImageOptions = ANY_IMAGE,
) -> Inspection:
    """Work out tokens per stage and per decoder layer, FLOPs and KV bytes, before any work.

    Parameters
    ----------
    target : str or Path
        ``reference`` or a checkpoint's directory; or a bundle or a compressed model, which shows its own plan.
    recipe : str, Path or Recipe, or None
        For a checkpoint; None is the model as it is.
    overrides : sequence of str
        Values of the recipe to change.
    text_tokens : int or None
        Tokens of the prompt beside the image's; None takes 32.
    image_options : ImageOptions
        What images the model is to serve.

    Returns
    -------
    Inspection

    Raises
    ------
    RecipeError
        If the recipe does not fit the model.
    InputError
        If there is no such target, or a finished one is asked about another recipe.

    Examples
    --------
    >>> import vtc
    >>> found = vtc.inspect("reference", "fastervlm-25")
    >>> found.plan.kv_bytes < found.baseline.kv_bytes
    True
    """
    if not is_finished(target):
        tokens = TEXT_TOKENS if text_tokens is None else text_tokens
        return planned(target, _recipe("none" if recipe is None else recipe, overrides), tokens, image_options)
    if recipe is not None or overrides or text_tokens is not None or image_options != ANY_IMAGE:
        raise InputError(f"{target} was made with a recipe; inspect the model it was made from to try another")
    return finished(Path(target))


def load(path: str | Path, options: RuntimeOptions = RuntimeOptions(), **changes: Any) -> VLM:
    """Load a bundle; neither torch nor transformers is needed.

    Parameters
    ----------
    path : str or Path
    options : RuntimeOptions
        How it is run.
    changes
        Fields of `options` by name, such as ``provider="cuda"``.

    Returns
    -------
    VLM

    Raises
    ------
    BundleError
        If the bundle is incomplete, changed, or made by a newer vtc.
    InputError
        If what is to run it is not to be had here.

    Examples
    --------
    >>> import vtc
    >>> from PIL import Image
    >>> model = vtc.load("out/bundle", provider="cpu")
    >>> isinstance(model.ask(Image.new("RGB", (224, 224)), "what digit is shown?"), str)
    True
    """
    from vtc.runtime.vlm import VLM

    return VLM.load(path, replace(options, **changes))


def _recipe(recipe: str | Path | Recipe, overrides: Sequence[str]) -> Recipe:
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, overrides)
    if not overrides:
        return recipe
    origin = recipe.source
    return parse_recipe(recipe.to_yaml(), file=recipe.name, directory=origin.directory, overrides=overrides)


def _several(names: str | Sequence[str]) -> list[str]:
    """List names, each once, in order."""
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))

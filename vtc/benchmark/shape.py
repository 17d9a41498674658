"""A published model's shape with random weights, timed as it is and with a recipe."""

from __future__ import annotations

import gc
import hashlib
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.benchmark.environment import environment
from vtc.benchmark.report import Rounds
from vtc.benchmark.shape_models import WORD, ShapeModels, question_about, random_models
from vtc.errors import BundleError, InputError
from vtc.progress import Report, silent

if TYPE_CHECKING:
    from vtc.benchmark.memory import Memory
    from vtc.benchmark.prediction import Prediction
    from vtc.benchmark.replay import Recording
    from vtc.benchmark.report import Runner
    from vtc.benchmark.timing import BenchPrompt
    from vtc.compressed.model import CompressedModel
    from vtc.models.random.shapes import Shape
    from vtc.plan import TokenPlan
    from vtc.recipe import Recipe

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
PRECISIONS = {"onnxruntime": ("fp32", "fp16"), "torch": ("bf16", "fp16", "fp32")}
"""What each backend runs, its default first."""
BACKEND = {
    "eager": "PyTorch, eager: the time that launching kernels takes is in all figures",
    "replayed": "PyTorch: the vision encoder, decoder segments in prefill and every step of decoding are CUDA graphs; "
    "selection on its own and what stands between segments are eager",
}
"""How PyTorch runs a shape."""
SELECTION_RUNS = 20
ROUNDS = Rounds(repeats=10, warmup=1)
"""Shapes are slower than the reference model, and vary less from round to round."""
TERMS = {
    "selection": "encoder stages run on their own, CLS attention rows included, and graphs between decoder segments; "
    "both are part of TTFT as well",
    "GFLOPs": "until the first token, by the plan's exact formula",
    "predicted": "by exact FLOPs: of decoder and head for prefill, of everything for TTFT; weights are the graphs' "
    "matrices",
}


@dataclass(frozen=True)
class Job:
    """What to time.

    Attributes
    ----------
    shape : Shape
    recipe : Recipe
    rounds : Rounds
    text_tokens : int
        Tokens of the prompt that are not visual.
    backend : str
        ``onnxruntime`` or ``torch``.
    device : str
        ``cpu`` or ``cuda``.
    precision : str
        One of :data:`PRECISIONS`; empty for the backend's first.
    threads : int or None
        CPU threads of one operator; None leaves it to the runtime.
    work : Path or None
        Where bundles are kept; None makes and forgets them.
    cuda_graphs : bool
        Whether PyTorch replays prefill and decoding as CUDA graphs.
    """

    shape: Shape
    recipe: Recipe
    rounds: Rounds = ROUNDS
    text_tokens: int = 32
    backend: str = "onnxruntime"
    device: str = "cpu"
    precision: str = ""
    threads: int | None = None
    work: Path | None = None
    cuda_graphs: bool = False


DEFAULT_RECIPE = "learnpruner"
"""The shipped recipe to compare with; it suits towers with and without a CLS token."""


def bench_shape(
    job: Job, show: Report = silent, built: ShapeModels | None = None, recording: Recording | None = None
) -> dict[str, Any]:
    """Build, export where the backend asks for it, and measure.

    Parameters
    ----------
    job : Job
    show : callable
        Told what is done, how much of it is done and how much there is.
    built : ShapeModels or None
        For PyTorch: the original and the compressed model, where they are there already from a shape that differs in
        its number of images alone. None builds them.
    recording : callable or None
        What `cuda_graphs` are recorded by; None takes CUDA graphs (see :mod:`vtc.benchmark.replay`).

    Returns
    -------
    dict
        The report of :func:`vtc.benchmark.report.bench`, with ``shape``, ``prediction``, ``selection`` and
        ``environment``.

    Raises
    ------
    InputError
        If the recipe is not complete, or something asked for is not to be had here.
    RecipeError
        If the recipe does not fit the shape; found out before anything is built.
    """
    # A pruner that is left to training is as fast untrained.
    left_open = [key for key in job.recipe.autos if not key.endswith(".checkpoint")]
    if left_open:
        raise InputError(
            f"recipe '{job.recipe.name}' leaves {left_open[0]} to calibration, which random weights say nothing "
            f"about; give a value: --set {left_open[0]}=..."
        )
    job = replace(job, precision=job.precision or PRECISIONS[job.backend][0])
    if job.precision not in PRECISIONS[job.backend]:
        raise InputError(f"--backend {job.backend} runs {', '.join(PRECISIONS[job.backend])}, not {job.precision}")
    if job.cuda_graphs and recording is None and (job.backend, job.device) != ("torch", "cuda"):
        raise InputError("--cuda-graphs goes with --backend torch --device cuda")
    plans, predictions = _plans(job)
    with tempfile.TemporaryDirectory(prefix="vtc-shape-") as directory:
        if job.backend == "onnxruntime":
            report = _measure_onnx(job, plans, predictions, Path(directory), show)
        else:
            found = built or _built(job, Path(directory))
            report = _measure_torch(job, plans, predictions, found, recording, show)
    return report | {"environment": environment(job.device, job.threads) | _torch(job.device)}


def _torch(device: str) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else None
    return {"torch": torch.__version__, "gpu": gpu}


def _plans(job: Job) -> tuple[list[TokenPlan], list[Prediction]]:
    from vtc.benchmark.prediction import predict
    from vtc.models.random.weights import facts_of
    from vtc.plan import plan

    facts = facts_of(job.shape)
    size = BYTES[job.precision]
    plans = [plan(recipe, facts, text_tokens=job.text_tokens, bytes_per_value=size) for recipe in recipes(job.recipe)]
    return plans, [predict(each, facts, job.shape.images, size, size) for each in plans]


def recipes(recipe: Recipe) -> list[Recipe]:
    """What is timed: the original and a recipe."""
    from vtc.recipe import NONE

    return [NONE, recipe]


# ONNX Runtime -------------------------------------------------------------------------------------------------------


def _measure_onnx(
    job: Job, plans: Sequence[TokenPlan], predictions: Sequence[Prediction], directory: Path, show: Report
) -> dict[str, Any]:
    import torch

    from vtc.benchmark.memory import measure_memory
    from vtc.benchmark.timing import runner
    from vtc.runtime.onnxruntime.providers import choose_provider
    from vtc.runtime.options import RuntimeOptions
    from vtc.runtime.vlm import VLM

    choose_provider(job.device)  # refused before anything is built
    model_directory = directory / "model"
    model_directory.mkdir()
    found = random_models(job.shape, recipes(job.recipe), model_directory, torch.float32, "cpu")
    adapter, models = found.adapter, found.models
    question = question_about(job.shape, adapter, job.text_tokens)
    work = job.work or directory
    paths = [
        _exported(job, model, recipe, question, work, show)
        for model, recipe in zip(models, recipes(job.recipe), strict=True)
    ]
    selection = _selection_onnx(job, models[1], directory)
    del adapter, models, found
    gc.collect()  # the checkpoint's memory is wanted for two sessions

    # Not verified: written by this very process, or by one before it.
    options = RuntimeOptions(provider=job.device, precision=job.precision, threads=job.threads, verify=False)
    memories: list[Memory | None] = [None, None]
    if job.rounds.memory:
        for number, path in enumerate(paths):
            show("peak memory", number, len(paths))
            memories[number] = measure_memory(path, question.images, question.text, job.rounds.max_new_tokens, options)
        show("peak memory", len(paths), len(paths))
    runners = [
        runner(name, VLM.load(path, options), [question], job.rounds.max_new_tokens)
        for name, path in zip(("original", job.recipe.name), paths, strict=True)
    ]
    report = _bench(job, runners, plans, predictions, memories, selection, show)
    report["parity"] = [_parity(path, job.precision) for path in paths]
    return report


def _exported(
    job: Job, model: CompressedModel, recipe: Recipe, question: BenchPrompt, work: Path, show: Report
) -> Path:
    """A model's bundle: the one that is there already, or exported now and compared on one short prompt."""
    from exporters.onnx import ExportRequest, export
    from vtc.bundle.manifest import load_manifest
    from vtc.compressed.checkpoint import Origin
    from vtc.data.samples import Sample

    digest = hashlib.sha256(repr(job.shape).encode()).hexdigest()
    out = work / f"{job.shape.name}-{recipe.digest[:12]}-{job.precision}"
    try:
        manifest = load_manifest(out)
        if (manifest.model["sha256"], manifest.recipe_digest) == (digest, recipe.digest):
            return out
    except BundleError:
        pass  # not there yet, or damaged: either way it is made now
    out.parent.mkdir(parents=True, exist_ok=True)
    sample = Sample(list(question.images), model.adapter.chat(WORD, len(question.images)))
    origin = Origin(f"shape:{job.shape.name}", digest)
    export(ExportRequest([model], recipe, origin, (sample,), (job.precision,), progress=show), out)
    return out


def _parity(path: Path, precision: str) -> dict[str, Any]:
    from vtc.bundle.manifest import load_manifest

    return dict(load_manifest(path, verify=False).parity[precision])


def _selection_onnx(job: Job, model: CompressedModel, directory: Path) -> list[float]:
    """Milliseconds of each run of the encoder stages, as a graph of their own."""
    import torch

    from exporters.copies import cast_copy
    from exporters.graphs import selection_spec
    from exporters.writing import export_graph
    from vtc.compressed.selection import selection_of
    from vtc.runtime.onnxruntime.graph import Graph
    from vtc.runtime.onnxruntime.providers import choose_provider

    module = selection_of(cast_copy([model], torch.float16)[0] if job.precision == "fp16" else model)
    if module is None:
        return []
    spec = selection_spec(module, job.shape.images)
    path = directory / "selection.onnx"
    export_graph(spec, path)
    graph = Graph(path, choose_provider(job.device), job.threads)
    feeds = {name: tensor.numpy() for name, tensor in zip(spec.inputs, spec.args, strict=True)}
    feeds = {name: feeds[name] for name in graph.inputs}  # a selector may not look at the features
    taken = []
    for _ in range(job.rounds.warmup + SELECTION_RUNS):
        graph.run(feeds, host=graph.outputs)
        taken.append(graph.run_ms)
    return taken[job.rounds.warmup :]


# PyTorch ------------------------------------------------------------------------------------------------------------


def _built(job: Job, directory: Path) -> ShapeModels:
    import torch

    if job.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no NVIDIA GPU here; try --device cpu")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[job.precision]
    return random_models(job.shape, recipes(job.recipe), directory, dtype, job.device)


def _measure_torch(
    job: Job,
    plans: Sequence[TokenPlan],
    predictions: Sequence[Prediction],
    built: ShapeModels,
    recording: Recording | None,
    show: Report,
) -> dict[str, Any]:
    import torch

    from vtc.benchmark.replay import replay_prefill, replayed_steps
    from vtc.benchmark.torch_timing import device_memory, torch_runner

    new_tokens, device = job.rounds.max_new_tokens, torch.device(job.device)
    question = question_about(job.shape, built.adapter, job.text_tokens)
    runners = []
    with ExitStack() as replays:
        for name, model in zip(("original", job.recipe.name), built.models, strict=True):
            if job.cuda_graphs:
                replays.enter_context(replay_prefill(model, recording))
            steps = replayed_steps(model, new_tokens, recording) if job.cuda_graphs else None
            runners.append(torch_runner(name, model, question, new_tokens, steps))
        memories = [device_memory(runner, device) if job.rounds.memory else None for runner in runners]
        selection = _selection_torch(job, built.models[1], device)
        report = _bench(job, runners, plans, predictions, memories, selection, show)
    report["protocol"]["backend"] = BACKEND["replayed" if job.cuda_graphs else "eager"]
    return report


def _selection_torch(job: Job, model: CompressedModel, device: Any) -> list[float]:
    import torch

    from vtc.benchmark.torch_timing import clock
    from vtc.compressed.selection import selection_of

    module = selection_of(model)
    if module is None:
        return []
    example = module.example(job.shape.images)
    taken = []
    with torch.inference_mode():
        for _ in range(job.rounds.warmup + SELECTION_RUNS):
            begin = clock(device)
            module(*example)
            taken.append(clock(device) - begin)
    return taken[job.rounds.warmup :]


# Report -------------------------------------------------------------------------------------------------------------


def _bench(
    job: Job,
    runners: Sequence[Runner],
    plans: Sequence[TokenPlan],
    predictions: Sequence[Prediction],
    memories: Sequence[Memory | None],
    selection: Sequence[float],
    show: Report,
) -> dict[str, Any]:
    from vtc.benchmark.prediction import beside_measured
    from vtc.benchmark.report import alternate, report_of

    original, model = (
        replace(
            runner,
            facts={
                **runner.facts,
                "visual_tokens": job.shape.images * runner.facts["visual_tokens"],
                "flops": predicted.flops,
                "flops_text_tokens": token_plan.text_tokens,
                "precision": job.precision,
            },
        )
        for runner, token_plan, predicted in zip(runners, plans, predictions, strict=True)
    )
    samples = alternate([original, model], 1, job.rounds.repeats, job.rounds.warmup, show)
    report = report_of([original, model], samples, memories, questions=1, warmup=job.rounds.warmup)
    encoder_ms = statistics.median(selection) if selection else 0.0
    between_ms = statistics.median(sample.selector_ms for sample in samples[1])
    report["shape"] = {
        "name": job.shape.name,
        "summary": job.shape.summary,
        "images": job.shape.images,
        "text_tokens": job.text_tokens,
        "weights": "random",
        "backend": job.backend,
        "recipe": job.recipe.canonical(),
        "recipe_digest": job.recipe.digest,
    }
    report["prediction"] = beside_measured(report, predictions)
    report["selection"] = {
        "encoder_ms": encoder_ms,
        "decoder_ms": between_ms,
        "share_of_original_ttft": (encoder_ms + between_ms) / report["runs"][0]["ttft_ms"]["p50"],
    }
    report["protocol"]["terms"] |= TERMS
    return report

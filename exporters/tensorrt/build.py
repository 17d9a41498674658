"""Build a bundle's TensorRT engines: one of each graph, published together, resumable graph by graph.

Needs TensorRT and the light install; neither torch nor onnx.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from exporters.target import PRODUCTS, Target
from exporters.tensorrt.builder import Builder, buildable, import_library
from exporters.tensorrt.memory import GIB, check_memory, need
from exporters.tensorrt.profiles import profiles
from vtc.artifact import check_output, digest_of
from vtc.bundle.engines import KIND, Engine, EngineSet, Limits, Profile, load_engines, write_engines
from vtc.bundle.manifest import Manifest
from vtc.bundle.weights import check_weights
from vtc.cache import cache_dir
from vtc.errors import InputError
from vtc.progress import Report, silent
from vtc.resume import read_notes, write_notes
from vtc.runtime.nvidia import Gpu, gpu_here
from vtc.runtime.versions import vtc_version
from vtc.staging import open_work

NOTES = ".build.json"


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class BuildRequest:
    """What to build and how.

    Attributes
    ----------
    bundle : Manifest
    target : Target
    precision : str
        Of the bundle's.
    capabilities : tuple of str
        GPU generations, where engines are built ahead of time; empty: the target's.
    limits : Limits
    workspace : float
        GiB of GPU memory that a layer may use for intermediate values; 0: all there is.
    timing_cache : Path or None
        None keeps one for each TensorRT and GPU in the user's cache directory.
    debug : bool
        Whether TensorRT's own log goes to stderr.
    progress : callable
        Told what is done, how much of it is done and how much there is.
    tell : callable
        Told in a line what the user should know besides.
    """

    bundle: Manifest
    target: Target
    precision: str
    capabilities: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    workspace: float = 0.0
    timing_cache: Path | None = None
    debug: bool = False
    progress: Report = silent
    tell: Callable[[str], None] = _on_stderr


def build(request: BuildRequest, out: Path) -> EngineSet:
    """Write an engine set, whole or not at all.

    Engines that an interrupted build of the same graphs has finished are taken up again.

    Raises
    ------
    InputError
        If the bundle, the target and this machine do not go together, or memory does not suffice.
    VtcError
        If TensorRT refuses a graph. Nothing is published then.
    """
    check_output(out, KIND)
    request.bundle.check_precision(request.precision)
    request.target.check(request.precision)
    request.target.check_plan(request.bundle.plan)
    builder, gpu = _prepare(request)
    _lint(request)
    if len(request.bundle.engine_graphs) < len(request.bundle.graphs):
        request.tell("engines compute every expert of a mixture for each token, in steps too")
    for graph in request.bundle.engine_graphs:
        _check_memory(request, builder, gpu, graph)
    files = {graph: f"{graph}.engine" for graph in request.bundle.engine_graphs}
    with open_work(out, "vtc build") as work:
        work.claim(f"{NOTES}*", *map(escape, files.values()), *(f".{escape(name)}.part" for name in files.values()))
        notes = read_notes(work.path / NOTES, dict[str, _Built])
        if notes is None:
            work.clear()
            notes = {}
        for graph, name in files.items():
            key, file = _key(request, builder, graph), work.path / name
            note = notes.get(graph)
            if note is None or note.key != key or note.sha256 != digest_of(file):
                engine = _build_one(request, builder, gpu, graph, file)
                notes[graph] = _Built(key, digest_of(file), engine)
                write_notes(work.path / NOTES, {done: asdict(one) for done, one in notes.items()})
            request.progress(f"building {graph}", 100, 100)
        engines = {graph: asdict(notes[graph].engine) for graph in files}
        write_engines(work, out, _manifest(request, builder, engines), files.values())
    return load_engines(out, request.bundle, verify=False)


@dataclass(frozen=True)
class _Built:
    """What is noted of a finished engine."""

    key: str
    sha256: str
    engine: Engine


def _build_one(request: BuildRequest, builder: Builder, gpu: Gpu | None, graph: str, file: Path) -> Engine:
    def shapes(inputs: dict[str, list[int | str]]) -> tuple[Profile, ...]:
        return profiles(request.bundle, graph, inputs, request.limits)

    def check(tensors: int) -> None:
        _check_memory(request, builder, gpu, graph, tensors)

    source = request.bundle.graph(graph, request.precision)
    check_weights(source)
    built = builder.build(source, file, shapes, check, request.progress)
    # Asking for its memory loads the engine, which only a GPU that it is for can do.
    memory = builder.memory_of(file) if gpu and gpu.capability in builder.capabilities else 0
    return Engine(file.name, built, memory)


def _check_memory(request: BuildRequest, builder: Builder, gpu: Gpu | None, graph: str, tensors: int = 0) -> None:
    """Refuse a graph whose engine cannot be built in the memory of this machine."""
    name = request.bundle.graphs[graph][request.precision]
    weights = sum(file.bytes for file in request.bundle.graph_files(graph, request.precision).values())
    runs = not request.target.ahead_of_time
    check_memory(name, need(weights, runs=runs, tensors=tensors, workspace=builder.workspace), gpu)


def usual_precision(bundle: Manifest, target: Target) -> str:
    """What is built where nobody asks for a precision: fp16 where there is one, else the first that the target takes.

    Raises
    ------
    InputError
        If the target takes none of the bundle's.
    """
    fitting = [precision for precision in bundle.precisions if target.allows(precision)]
    if not fitting:
        raise InputError(
            f"target '{target.name}' takes {', '.join(target.precisions)}, and {bundle.root} has only "
            f"{', '.join(bundle.precisions)}; export it with another --precision"
        )
    return "fp16" if "fp16" in fitting else fitting[0]


def _prepare(request: BuildRequest) -> tuple[Builder, Gpu | None]:
    """The builder, and the GPU at hand; refuses what they cannot do together."""
    target = request.target
    module, gpu = import_library(target), gpu_here()
    if target.ahead_of_time:
        capabilities, cache = _ahead_of_time(request, module), None
    else:
        here = _at_hand(request, gpu)
        capabilities = (here.capability,)
        cache = request.timing_cache or _usual_cache(target, module, here)
    builder = Builder(
        module,
        target,
        capabilities,
        workspace=int(request.workspace * GIB),
        cache=cache,
        own_cache=request.timing_cache is not None,
        debug=request.debug,
    )
    return builder, gpu


def _ahead_of_time(request: BuildRequest, module: Any) -> tuple[str, ...]:
    """The GPU generations to build for, by a library that needs no GPU."""
    product = f"{PRODUCTS[request.target.library]} {module.__version__}"
    if request.timing_cache is not None:
        raise InputError(f"{product} times nothing while it builds and has no timing cache; leave --timing-cache out")
    wanted = tuple(dict.fromkeys(request.capabilities or request.target.capabilities))
    known = buildable(module)
    for capability in wanted:
        if capability not in known:
            raise InputError(
                f"{product} does not build for SM {capability}; give --capability {', '.join(known)}, one or several"
            )
        request.target.check(request.precision, capability)
    return wanted


def _at_hand(request: BuildRequest, gpu: Gpu | None) -> Gpu:
    """The GPU here, which is the one to build for."""
    target = request.target
    if request.capabilities:
        raise InputError(
            f"{PRODUCTS[target.library]} builds for the GPU at hand; leave --capability out and build on the device"
        )
    if gpu is None:
        raise InputError(
            f"target '{target.name}' is built on the device itself, and there is no NVIDIA GPU here; "
            "copy the bundle there and run vtc build again"
        )
    if gpu.capability not in target.capabilities:
        raise InputError(
            f"target '{target.name}' is for SM {', '.join(target.capabilities)}, and the GPU here is "
            f"SM {gpu.capability}; give another --target, or build on the device"
        )
    return gpu


def _usual_cache(target: Target, module: Any, gpu: Gpu) -> Path:
    return cache_dir() / f"{target.library}-{module.__version__}-sm{gpu.capability}.timing"


def _lint(request: BuildRequest) -> None:
    """Refuse what the target is known not to take, before TensorRT says it in its own words."""
    try:
        from exporters.lint import check_bundle
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        request.tell("onnx is not installed: graphs are not linted here, vtc export --target does that")
        return
    check_bundle(request.bundle, request.precision, request.target)


def _key(request: BuildRequest, builder: Builder, graph: str) -> str:
    """Digest of all that an engine comes of."""
    bundle = request.bundle
    parts = [
        graph,
        [file.sha256 for file in bundle.graph_files(graph, request.precision).values()],
        # Profiles follow from these.
        asdict(request.limits),
        [asdict(served) for served in bundle.images],
        [asdict(segment) for segment in bundle.segments],
        asdict(bundle.generation),
        builder.product,
        builder.capabilities,
        builder.workspace,
        vtc_version(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _manifest(request: BuildRequest, builder: Builder, engines: dict[str, Any]) -> dict[str, Any]:
    return {
        "vtc_version": vtc_version(),
        "bundle": request.bundle.digest,
        "recipe_digest": request.bundle.recipe_digest,
        "target": request.target.name,
        "precision": request.precision,
        "library": request.target.library,
        "library_version": builder.module.__version__,
        "capabilities": list(builder.capabilities),
        "limits": asdict(request.limits),
        "engines": engines,
    }

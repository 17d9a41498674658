"""Export a compressed model as an ONNX bundle: graphs, processor files, manifest, and proof of parity."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors.torch
import torch

from exporters.copies import DTYPES, cast_copy, discard
from exporters.describe import described
from exporters.device import SCRIPT, device_files, write_device_files
from exporters.graphs import graph_specs, source_modules
from exporters.lint import check_bundle, lint, summary
from exporters.parity import Parity
from exporters.precision import Precision, precision
from exporters.precision.derive import Derived, Exported, derive
from exporters.processor import COPIED_FILE, WRITTEN_FILES, name_external_data, write_json, write_processor
from exporters.proof import Proof
from exporters.sharing import share_weights
from exporters.steps import step_name
from exporters.target import Target
from exporters.targets import TARGETS
from exporters.variants import Optimised, optimise, portable, to_json
from exporters.vision_graphs import READER, VISION
from exporters.writing import DEFAULT_OPSET, export_graph
from vtc.artifact import check_output, digest_of
from vtc.bundle.external_data import external_files
from vtc.bundle.facts import FORMS, Variant, precision_and_form
from vtc.bundle.manifest import WEIGHTS, draft_manifest, write_bundle
from vtc.compressed.checkpoint import Origin
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.errors import InputError, NumericError, VtcError
from vtc.finite import first_not_finite
from vtc.plan import plan
from vtc.progress import Report, silent
from vtc.recipe import NONE, Recipe
from vtc.resume import read_notes, write_notes
from vtc.runtime.versions import vtc_version
from vtc.staging import Work, open_work

NOTES = ".export.json"
VALUES = "precision.json"
"""What a bundle says of its precisions, value by value; for people, nothing reads it."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export and how.

    Attributes
    ----------
    models : sequence of CompressedModel
        One for each layout of images to serve, the default one first, at each of the recipe's budgets, the largest
        first; they differ in nothing else. See :func:`vtc.compressed.checkpoint.served`.
    recipe : Recipe
        The resolved recipe that the model was made with.
    origin : Origin
        Its base model.
    precisions : sequence of str
        See :mod:`exporters.precision`.
    optimised : sequence of str
        Optimised variants of those precisions; see :mod:`exporters.variants`.
    opset : int
    samples : sequence of Sample
        Prompts on which the bundle is compared with the model.
    calibration : sequence of Sample
        Those of real use, by which weights in few bits are rounded; without any, each becomes the nearest number.
    tuning : int
        Steps in which their scales are learned on these samples; see :mod:`exporters.precision.tuning`.
    targets : sequence of Target
        What engines are to be built for: the graphs are linted for each before they are compared, and the bundle
        gets scripts that build engines and a page that says what to expect.
    progress : callable
        Told what is done, how much of it is done and how much there is.
    warnings : sequence of str
        What the bundle is to repeat to whoever uses it.
    placement : mapping or None
        Where the experts of a mixture are to live, for the manifest (see :func:`vtc.experts.placement_files.to_json`).
    """

    models: Sequence[CompressedModel]
    recipe: Recipe
    origin: Origin
    samples: Sequence[Sample]
    precisions: Sequence[str] = ("fp32",)
    optimised: Sequence[str] = ()
    opset: int = DEFAULT_OPSET
    targets: Sequence[Target] = ()
    calibration: Sequence[Sample] = ()
    tuning: int = 0
    progress: Report = silent
    warnings: Sequence[str] = ()
    placement: Mapping[str, Any] | None = None

    @property
    def model(self) -> CompressedModel:
        """The one of the default layout."""
        return self.models[0]

    @property
    def budgets(self) -> list[int | None]:
        """Of each model; None where the recipe has one for all questions."""
        each = self.recipe.budgets[::-1] or (None,)
        return [keep for keep in each for _ in range(len(self.models) // len(each))]

    @property
    def key(self) -> dict[str, Any]:
        """What a half-finished export must share with this one to be taken up again."""
        return {
            "recipe": self.recipe.digest,
            "model": self.origin.digest,
            "trained": hashlib.sha256(safetensors.torch.save(self.model.trained.state_dict())).hexdigest(),
            "layouts": [str(model.adapter.facts.layout) for model in self.models],
            "budgets": self.budgets,
            "opset": self.opset,
            "vtc": vtc_version(),
            "torch": torch.__version__,
        }


def export(request: ExportRequest, out: Path) -> dict[str, Parity]:
    """Write a bundle, whole or not at all.

    Graphs that an interrupted export of the same model has finished are taken up again.

    Returns
    -------
    dict of variant to Parity
        How far each is from the model.

    Raises
    ------
    BundleError
        If `out` holds something else than a bundle.
    InputError
        If one of the targets does not take the graphs or a precision. Nothing is published then.
    ParityError
        If the graphs do not compute what the model computes. Nothing is published then.
    """
    check_output(out, "bundle")
    wanted = [precision(name) for name in request.precisions]
    for one in request.targets:
        one.check_export(request.precisions, request.opset)
        one.check_plan(request.model.plan.to_dict())
    with open_work(out, "vtc export") as staging:
        return _export(request, staging, out, wanted)


def _export(request: ExportRequest, staging: Work, out: Path, wanted: Sequence[Precision]) -> dict[str, Parity]:
    work = staging.path
    notes = _take_up(request, staging)
    derived = {base: _export_base(request, staging, notes, base, of) for base, of in _by_base(wanted).items()}
    portable_paths = {one.name: derived[one.base].paths[one.name] for one in wanted}
    if request.recipe.budgets:
        for paths in portable_paths.values():
            share_weights([path for name, path in paths.items() if name.startswith((VISION, READER))])
    optimised = [
        optimise(name, portable_paths[precision_and_form(name)[0]], request.progress) for name in request.optimised
    ]
    graphs = _graphs(request, work, wanted, portable_paths, optimised)
    values = {name: note for one in derived.values() for name, note in one.notes.items()}
    values |= {one.variant.name: {"rewritten": one.notes()} for one in optimised}
    if values:
        write_json(work / VALUES, values)
    write_processor(request.model, work)
    name_external_data(work, [path for paths in graphs.values() for path in paths.values()])
    variants = [*map(portable, request.precisions), *(one.variant for one in optimised)]
    manifest = _manifest(request, graphs, variants)
    draft = draft_manifest(work, manifest)
    for target in request.targets:
        for name in request.precisions:
            check_bundle(draft, name, target)
    proof = Proof(request.models, request.samples, draft, request.progress)
    parity = {name: found for one in wanted for name, found in proof.of(one, derived[one.base]).items()}
    if request.targets:
        write_device_files(work, draft, request.targets)
    figures = {name: one.to_dict() for name, one in parity.items()}
    write_bundle(staging, out, {**manifest, "parity": figures}, _files(request, work, graphs, bool(values)))
    return parity


def _files(request: ExportRequest, work: Path, graphs: Mapping[str, Mapping[str, str]], values: bool) -> list[str]:
    """What the bundle holds."""
    paths = [path for of in graphs.values() for path in of.values()]
    beside = {(PurePosixPath(path).parent / name).as_posix() for path in paths for name in external_files(work / path)}
    copied = [COPIED_FILE] if (work / COPIED_FILE).is_file() else []
    return [
        *paths,
        *sorted(beside),
        *copied,
        *WRITTEN_FILES,
        *([VALUES] if values else []),
        *device_files(request.targets),
    ]


def _by_base(wanted: Sequence[Precision]) -> dict[str, list[Precision]]:
    found: dict[str, list[Precision]] = {}
    for one in wanted:
        found.setdefault(one.base, []).append(one)
    return found


def _export_base(
    request: ExportRequest, staging: Work, notes: _Notes, base: str, wanted: Sequence[Precision]
) -> Derived:
    """Export the graphs of a base that an earlier run has not finished, and make those of its precisions of them."""
    work = staging.path
    raw: dict[str, Path] = {}
    request.model.adapter.set_decoder_attention("grouped")
    try:
        dtype = DTYPES[base]
        models = request.models if base == "fp32" else cast_copy(request.models, dtype)
        _check_weights(models[0], base)
        specs = graph_specs(models, dtype)
        suffixes = ["", *(one.suffix for one in wanted)]
        suffixes += [f"{suffix}_{form}" for suffix in suffixes for form in FORMS]
        stems = [name for spec in specs for name in dict.fromkeys((spec.name, step_name(spec.name)))]
        names = [f"onnx/{escape(stem)}{suffix}.onnx" for stem in stems for suffix in suffixes]
        staging.claim(*names, *(name + WEIGHTS for name in names))
        for done, spec in enumerate(specs):
            request.progress(f"exporting {base} graphs", done, len(specs))
            name = f"onnx/{spec.name}.onnx" if base == "fp32" else f"onnx/.{spec.name}_{base}.onnx"
            raw[spec.name] = work / name
            if notes.graphs.get(name) != digest_of(work / name):
                export_graph(spec, work / name, opset=request.opset)
                notes.graphs[name] = digest_of(work / name)
                write_notes(work / NOTES, asdict(notes))
        if base != "fp32":
            discard(models)
        request.progress(f"exporting {base} graphs", len(specs), len(specs))
    finally:
        request.model.adapter.set_decoder_attention("sdpa")
    source = Exported(
        base,
        raw,
        source_modules(request.models),
        request.models,
        request.samples,
        request.calibration,
        request.tuning,
        request.progress,
    )
    return derive(source, wanted)


def _check_weights(model: CompressedModel, base: str) -> None:
    """Make sure that what is exported is made of numbers: scores that are not choose tokens all the same."""
    for name, weight in (*model.adapter.model.named_parameters(), *model.trained.named_parameters()):
        if first_not_finite([(name, weight)]) is None:
            continue
        if base == "fp32" or torch.isnan(weight).any():
            raise NumericError(f"{name} holds what is not a number (NaN or infinity); fetch it, or train it, again")
        raise InputError(f"{name} is beyond {str(DTYPES[base]).removeprefix('torch.')}; give --precision bf16 or fp32")


def _manifest(
    request: ExportRequest, graphs: Mapping[str, Mapping[str, str]], variants: Sequence[Variant]
) -> dict[str, Any]:
    layouts = [one for one, keep in zip(request.models, request.budgets, strict=True) if keep == request.budgets[0]]
    model, recipe = request.model, request.recipe
    return {
        "vtc_version": vtc_version(),
        "model": {
            "name": request.origin.name,
            "family": model.adapter.family,
            "sha256": request.origin.digest,
            "image_options": asdict(model.adapter.wanted),
            "layouts": [asdict(one.adapter.wanted) for one in layouts],
        },
        "recipe": recipe.canonical(),
        "recipe_digest": recipe.digest,
        "plan": model.plan.to_dict(),
        "baseline_plan": plan(NONE, model.base_facts).to_dict(),
        "has_places": model.plan.has_places,
        "opset": request.opset,
        "variants": to_json(variants),
        **described(request.models, request.budgets),
        "graphs": graphs,
        "parity": {},
        "warnings": list(request.warnings),
        **({"placement": dict(request.placement)} if request.placement is not None else {}),
    }


def _graphs(
    request: ExportRequest,
    work: Path,
    wanted: Sequence[Precision],
    paths: Mapping[str, Mapping[str, Path]],
    optimised: Sequence[Optimised],
) -> dict[str, dict[str, str]]:
    """Graph name to variant to path in the bundle, of graphs that can be deployed."""
    graphs: dict[str, dict[str, str]] = {}
    for one in wanted:
        for name, path in paths[one.name].items():
            _lint(path, name, max(request.opset, one.opset), zero_points=one.zero_points)
            graphs.setdefault(name, {})[one.name] = path.relative_to(work).as_posix()
    for found in optimised:  # of operators that the linter, which speaks for all runtimes, refuses
        for name, path in found.paths.items():
            graphs[name][found.variant.name] = path.relative_to(work).as_posix()
    return graphs


@dataclass(frozen=True)
class _Notes:
    """What is noted of a half-finished export: what it is of, and the digests of finished graphs by name."""

    key: dict[str, Any]
    graphs: dict[str, str]


def _take_up(request: ExportRequest, staging: Work) -> _Notes:
    """Notes of an interrupted export of the same model, whose graphs are used; of another one, all is removed."""
    devices = {SCRIPT, *device_files(TARGETS)}
    staging.claim(f"{NOTES}*", "onnx/.*", VALUES, COPIED_FILE, *WRITTEN_FILES, *devices)
    notes = read_notes(staging.path / NOTES, _Notes)
    if notes is None or notes.key != request.key:
        staging.clear()
        notes = _Notes(request.key, {})
    (staging.path / "onnx").mkdir(exist_ok=True)
    return notes


def _lint(path: Path, name: str, opset: int, *, zero_points: bool) -> None:
    constant_tokens = name.startswith((VISION, READER))
    findings = lint(path, max_opset=opset, constant_tokens=constant_tokens, zero_points=zero_points)
    if findings:
        raise VtcError(f"exported graph cannot be deployed: {summary(findings)}; please report this")

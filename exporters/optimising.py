"""Optimised variants for a bundle that exists: rewritten from its portable graphs, and compared with those.

No PyTorch model is at hand then; the portable graphs were compared with it when the bundle was exported.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exporters.differences import ANSWER_TOKENS, largest, moves
from exporters.exact import exactly
from exporters.precision import precision
from exporters.variants import Optimised, optimise, to_json, variant_file, wanted_variants
from vtc.artifact import check_output
from vtc.bundle.engines import FOLDER
from vtc.bundle.facts import Form, precision_and_form, variant_name
from vtc.bundle.manifest import Manifest, draft_manifest, manifest_fields, write_bundle
from vtc.data.datasets import load_dataset
from vtc.errors import BundleError, InputError, ParityError
from vtc.files import link_or_copy
from vtc.progress import Report, silent
from vtc.runtime.interface import IntArray
from vtc.runtime.onnxruntime.backend import OnnxRuntime
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.variants import PORTABLE
from vtc.runtime.vlm import VLM
from vtc.staging import Work, open_work

Device = Literal["cpu", "cuda"]
SUITED: dict[Device, tuple[tuple[str, ...], Form]] = {
    "cpu": (("fp32", "q4", "int8"), "ort"),
    "cuda": (("fp16", "q4f16", "q8f16", "fp32"), "ort"),
}
"""Precisions that are computed well on a device, and the form that is fastest there."""


@dataclass(frozen=True)
class Agreement:
    """How far a variant is from the portable graphs of its precision.

    Attributes
    ----------
    against : str
        Those graphs' variant.
    samples : int
        Prompts compared.
    logits_max_diff : float
        Largest difference of a logit along the portable graphs' answers.
    greedy_match : float
        Share of prompts with equal greedy tokens.
    """

    against: str
    samples: int
    logits_max_diff: float
    greedy_match: float


def variants_for(manifest: Manifest, device: Device) -> list[str]:
    """The optimised variants of a bundle that suit a device, by its precisions.

    Raises
    ------
    InputError
        If the bundle has no precision that suits it.
    """
    precisions, form = SUITED[device]
    found = [variant_name(one, form) for one in precisions if one in manifest.precisions]
    if not found:
        raise InputError(
            f"{manifest.root}: holds {', '.join(manifest.precisions)} graphs, and {device} is for "
            f"{', '.join(precisions)}; export it with one of those"
        )
    return found


def optimise_bundle(
    manifest: Manifest,
    names: Sequence[str],
    out: Path,
    source: str | Path | None = None,
    samples: int = 8,
    progress: Report = silent,
) -> dict[str, Agreement]:
    """Write a bundle with optimised variants beside what it has.

    Parameters
    ----------
    manifest : Manifest
    names : sequence of str
        Of optimised variants whose precisions the bundle has; those that are there already are made anew.
    out : Path
        The bundle's own directory, which is then replaced, or another.
    source : str, Path or None
        Images and questions to compare on, as for ``vtc export``; None makes noise.
    samples : int
    progress : callable

    Returns
    -------
    dict of variant to Agreement

    Raises
    ------
    BundleError
        If `out` holds something else than a bundle, or engines that would be lost.
    InputError
        If a variant is not known, or the bundle lacks its precision.
    ParityError
        If a variant computes something else than the portable graphs. Nothing is written then.
    """
    precisions, optimised = wanted_variants(names)
    for one in precisions:
        manifest.check_precision(one)
    if plain := [name for name in names if name not in optimised]:
        raise InputError(
            f"{plain[0]} is a precision, which only vtc export writes; give a variant such as {plain[0]}-ort"
        )
    for name in optimised:
        if precision(precision_and_form(name)[0]).activations:
            raise InputError(
                f"{name} rounds activations, and a bundle holds too little to compare such a variant with; "
                f"give --variant {name} to vtc export"
            )
    check_output(out, "bundle")
    if (out / FOLDER).exists():
        raise BundleError(f"{out}: holds engines, which are of the bundle as it is; give another directory (-o)")
    with open_work(out, "vtc optimize") as staging:
        return _optimise(manifest, optimised, staging, out, _prompts(manifest, source, samples), progress)


def _optimise(
    manifest: Manifest, names: Sequence[str], staging: Work, out: Path, prompts: Sequence[_Prompt], progress: Report
) -> dict[str, Agreement]:
    work = staging.path
    forms = {name: precision_and_form(name)[1] for name in names}
    made = [
        f"onnx/{variant_file(Path(paths[precision_and_form(name)[0]]), form)}"
        for paths in manifest.graphs.values()
        for name, form in forms.items()
    ]
    kept = [name for name in manifest.files if name not in made]
    staging.claim("onnx/.*", *map(escape, [*kept, *made]))
    staging.clear()
    # A bundle that is to be replaced lends its files; another one's are copied.
    put = link_or_copy if out.resolve() == manifest.root.resolve() else shutil.copyfile
    for name in kept:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        put(manifest.file(name), work / name)
    found = []
    for name in names:
        of, _ = precision_and_form(name)
        found.append(optimise(name, {graph: work / paths[of] for graph, paths in manifest.graphs.items()}, progress))
    for one in found:
        _check_fused(one)
    fields = _with_variants(manifest, found, work)
    draft = draft_manifest(work, fields)
    agreements = {one.variant.name: _compare(draft, one, prompts, progress) for one in found}
    fields["parity"] = {**fields["parity"], **{name: asdict(one) for name, one in agreements.items()}}
    files = [*kept, *(path.relative_to(work).as_posix() for one in found for path in one.paths.values())]
    write_bundle(staging, out, fields, files)
    return agreements


def _check_fused(one: Optimised) -> None:
    if not one.paths:
        reasons = dict.fromkeys(reason for graph in one.rewritten for reason in graph.left)
        raise InputError(f"{one.variant.name}: nothing of this bundle can be rewritten ({'; '.join(reasons)})")


def _with_variants(manifest: Manifest, found: Sequence[Optimised], work: Path) -> dict[str, Any]:
    """The manifest's fields with the new variants in the place of those of the same names."""
    names = {one.variant.name for one in found}
    fields = manifest_fields(manifest)
    others = [one for one in manifest.variants if one.name not in names]
    fields["variants"] = to_json([*others, *(one.variant for one in found)])
    fields["graphs"] = {
        graph: {name: path for name, path in paths.items() if name not in names}
        | {one.variant.name: one.paths[graph].relative_to(work).as_posix() for one in found if graph in one.paths}
        for graph, paths in manifest.graphs.items()
    }
    return fields


@dataclass(frozen=True)
class _Prompt:
    images: list[Image.Image]
    question: str


def _prompts(manifest: Manifest, source: str | Path | None, count: int) -> list[_Prompt]:
    if source is not None:
        items = load_dataset(source, count, 0, split="train").items
        return [_Prompt([item.load()], item.question) for item in items]
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        served = manifest.images[number % len(manifest.images)]
        several = served.frames * (1 if served.alone else 2)
        noise = rng.integers(0, 256, (several, *served.size, 3), dtype=np.uint8)
        found.append(_Prompt([Image.fromarray(image) for image in noise], "What is in the image?"))
    return found


def _compare(draft: Manifest, one: Optimised, prompts: Sequence[_Prompt], progress: Report) -> Agreement:
    """Compare a variant with the portable graphs, both computing as exactly as they can.

    Raises
    ------
    ParityError
        If they differ by more than rounding explains.
    """
    of = precision(one.variant.precision)
    exact = exactly(draft, one.variant.name)
    # One model after the other: both would not fit where one does.
    theirs = _answers(exact, of.name + PORTABLE, prompts, None, progress)
    mine = _answers(exact, one.variant.name, prompts, [each.tokens for each in theirs], progress)
    pairs = list(zip(theirs, mine, strict=True))
    difference = max(largest(a.logits - b.logits) for a, b in pairs)
    steps = [step for a, b in pairs for step in zip(a.kept, b.kept, strict=True)]
    others = max((one.others for step in steps for one in moves(*step)), default=0)
    if others > max(1, int(of.moved * max(served.keep_per_span for served in draft.images))):
        raise ParityError(
            f"{one.variant.name} graphs keep {others} other tokens of an image than {of.name}'s; nothing was written"
        )
    if difference > of.tolerance:
        raise ParityError(
            f"{one.variant.name} graphs differ from {of.name}'s: logits by {difference:.2g}, where {of.tolerance:g} is "
            "allowed; nothing was written"
        )
    equal = [a.tokens == b.tokens for a, b in pairs]
    return Agreement(of.name, len(prompts), difference, float(np.mean(equal)))


@dataclass(frozen=True)
class _Answer:
    tokens: list[int]
    logits: NDArray[np.float32]
    kept: list[IntArray]


def _answers(
    draft: Manifest, variant: str, prompts: Sequence[_Prompt], forced: Sequence[list[int]] | None, progress: Report
) -> list[_Answer]:
    """What a variant answers, and its logits along its own answers or others."""
    model = VLM(draft, OnnxRuntime(draft, RuntimeOptions(precision=variant)))
    end = model.text.facts.eos_token_ids[0]
    found: list[_Answer] = []
    for done, prompt in enumerate(prompts):
        progress(f"comparing {variant} graphs", done, len(prompts))
        served = model.serve([prompt.images])
        asked = [prompt.images], [model.text.chat(prompt.question, len(prompt.images) // served.frames, served)]
        tokens = list(model.generate(*asked, ANSWER_TOKENS)[0].token_ids)
        along = tokens if forced is None else forced[done]
        found.append(_Answer(tokens, model.score(*asked, [[*along, end]])[0], model.kept(*asked)))
    progress(f"comparing {variant} graphs", len(prompts), len(prompts))
    return found

"""``vtc.export``: a compressed model in, a bundle and proof of parity out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.errors import InputError
from vtc.facts.layout import ImageOptions
from vtc.progress import Report, silent

if TYPE_CHECKING:
    from exporters.parity import Parity
from vtc.api.arguments import as_list


@dataclass(frozen=True)
class ExportResult:
    """What :func:`export` made.

    Attributes
    ----------
    path : Path
        The bundle's directory.
    parity : dict of str to Parity
        For each variant, how far the bundle is from the model in PyTorch.
    """

    path: Path
    parity: dict[str, Parity]


def export(
    compressed: str | Path,
    *,
    out: str | Path,
    variants: str | Sequence[str] = "fp32",
    targets: str | Sequence[str] = (),
    opset: int = 20,
    model: str | Path | None = None,
    data: str | Path | None = None,
    samples: int = 16,
    tune: int = 0,
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
    variants : str or sequence of str
        Precisions (:data:`exporters.precision.NAMES`), and optimised variants of them such as ``q4-ort``, whose
        precision is then exported too.
    targets : str or sequence of str
        What engines are to be built for: names of :data:`exporters.targets.TARGETS`. Graphs that one of them could not
        take are refused.
    opset : int
        ONNX operator set, 18 to 22.
    model : str, Path or None
        Where the checkpoint is now, if it has moved.
    data : str, Path or None
        Images and questions to compare on, and to round weights in few bits by: a directory with data.jsonl, or
        ``reference``. None takes ``reference`` for the reference model. Others are compared on noise, and their weights
        rounded to the nearest number.
    samples : int
        Number of prompts to compare on; weights are rounded by 32 at least.
    tune : int
        Steps in which the scales of weights in few bits are learned from what the model itself says on these prompts.
        A step takes what three or four forward passes over two prompts take.
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
        If a variant or target is not known or does not take the graphs.
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
    from exporters.variants import wanted_variants
    from vtc.artifact import check_output, read_manifest

    names, optimised = wanted_variants(as_list(variants))
    found = [target(name) for name in as_list(targets)]
    needs_ranges = [name for name in names if precision(name).activations]
    stored = [precision(name) for name in names if precision(name).stored]
    if tune and all(one.activations == "all" for one in stored):
        raise InputError(f"{tune} steps of tuning are for weights in few bits, and none of {', '.join(names)} has them")
    check_output(Path(out), "bundle")
    for one in found:
        one.check_export(names, opset)

    from exporters.needs import room_to_export
    from exporters.onnx import ExportRequest
    from exporters.onnx import export as run
    from vtc.compressed.checkpoint import load_compressed, served
    from vtc.compressed.inspection import warnings_of
    from vtc.data.datasets import data_for
    from vtc.data.samples import CALIBRATION, Sample, samples_from

    first = room_to_export(Path(out), [precision(name) for name in names], samples, max(1, len(image_options)))
    loaded, recipe, origin = load_compressed(Path(compressed), None if model is None else str(model), first=first)
    models = served(loaded, recipe, image_options)
    source = data_for(origin.name, data)
    if needs_ranges and source is None:
        raise InputError(f"{needs_ranges[0]} takes ranges of activations from samples, and noise has none; give --data")

    if tune and source is None:
        raise InputError("scales are tuned on prompts of real use, and noise is none; give --data")

    def asked(count: int) -> list[Sample]:
        layouts = models[: max(1, len(image_options))]  # which budgets share among themselves
        share = -(-count // len(layouts))
        return [sample for one in layouts for sample in samples_from(one.adapter, source, share, seed=0)]

    request = ExportRequest(
        models=models,
        recipe=recipe,
        origin=origin,
        samples=asked(samples),
        calibration=asked(max(samples, CALIBRATION)) if stored and source is not None else (),
        tuning=tune,
        precisions=names,
        optimised=optimised,
        opset=opset,
        targets=found,
        progress=progress,
        warnings=warnings_of(Path(compressed)),
        placement=read_manifest(Path(compressed), "compressed", sys.maxsize).get("placement"),
    )
    return ExportResult(Path(out), run(request, Path(out)))

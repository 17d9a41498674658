"""`vtc export`: a compressed model as an ONNX bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporters.precision import NAMES, PRECISIONS, precision
from vtc.cli.image_options import image_option_flags, layouts_wanted
from vtc.errors import InputError
from vtc.facts.layout import Grid
from vtc.heap import return_large_blocks
from vtc.progress import progress

if TYPE_CHECKING:
    from exporters.parity import Parity

WORST = 3
"""Values that are told of; all stand in the bundle's precision.json."""


def _with_precisions(text: str) -> str:
    """Help with a paragraph of what precisions there are."""
    lines = "\n".join(f"  {one.name:<13}{one.summary}" for one in PRECISIONS)
    return f"{text}\n\n\b\nPrecisions:\n{lines}"


@click.command(
    short_help="A compressed model as an ONNX bundle.",
    help=_with_precisions(
        """Export DIRECTORY, which vtc compress wrote, as an ONNX bundle.

The bundle is compared with the PyTorch model before it is called done: kept tokens, logits, greedy answers. An
interrupted export is taken up again by the same command."""
    ),
)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Bundle directory to write.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=("fp32",),
    show_default=True,
    type=click.Choice(NAMES),
    metavar="P",
    help="As above; give it several times for several in one bundle.",
)
@click.option(
    "--target",
    "target_names",
    metavar="T",
    multiple=True,
    help="Make the bundle ready for T (vtc ls targets): graphs that it could not take are refused, and build.sh and "
    "README.md say how engines are built there. Several if repeated.",
)
@click.option("--opset", default=20, show_default=True, type=click.IntRange(18, 22), help="ONNX operator set.")
@click.option("--model", "base", metavar="MODEL", help="Where the base model is now, if it has moved.")
@click.option(
    "--data", metavar="D", help="Images and questions to compare on: a directory with data.jsonl, or 'reference'."
)
@click.option("--samples", default=16, show_default=True, type=click.IntRange(1), help="Prompts to compare on.")
@image_option_flags(several=True)
def command(
    directory: Path,
    out: Path,
    precisions: tuple[str, ...],
    target_names: tuple[str, ...],
    opset: int,
    base: str | None,
    data: str | None,
    samples: int,
    image_size: tuple[Grid, ...],
    tiles: tuple[Grid, ...],
    frames: int,
) -> None:
    from exporters.targets import target
    from vtc.artifact import check_output

    check_output(out, "bundle")
    targets = [target(name) for name in dict.fromkeys(target_names)]
    for one in targets:
        one.check_export(precisions, opset)
    return_large_blocks()
    with progress() as tell:
        from exporters.onnx import ExportRequest, export
        from vtc.compressed.checkpoint import for_images, load_compressed
        from vtc.data.samples import samples_from

        model, recipe, origin = load_compressed(directory, base)
        wanted = layouts_wanted(image_size, tiles, frames)
        models = [for_images(model, recipe, image_options) for image_options in wanted] or [model]
        source = data or ("reference" if origin.name == "reference" else None)
        ranged = [name for name in precisions if precision(name).activations]
        if ranged and source is None:
            raise InputError(f"{ranged[0]} takes ranges of activations from samples, and noise has none; give --data")
        share = -(-samples // len(models))
        request = ExportRequest(
            models=models,
            recipe=recipe,
            origin=origin,
            samples=[sample for one in models for sample in samples_from(one.adapter, source, share, seed=0)],
            precisions=tuple(dict.fromkeys(precisions)),
            opset=opset,
            targets=targets,
            progress=tell,
        )
        parity = export(request, out)
    for name, figures in parity.items():
        click.echo(f"{out}: {_told(name, figures)}")
    for line in _values(out):
        click.echo(f"{out}: {line}")
    if targets:
        click.echo(f"{out}: suits {', '.join(one.name for one in targets)}; see {out / 'README.md'}")


def _told(name: str, figures: Parity) -> str:
    own = (
        f"same tokens kept {figures.indices_equal:.0%}, logits within {figures.logits_max_diff:.1g}, "
        f"greedy answers equal {figures.greedy_match:.0%}"
    )
    if figures.layers is not None:
        return f"{name} layers within {figures.layers:.1g} of PyTorch's, rounding alike; from the model itself: {own}"
    emulated = ", emulated in float32" if figures.emulated else ""
    line = f"{name} parity on {figures.samples} prompts{emulated}: {own}"
    if figures.original is None:
        return line
    far = figures.original
    return (
        f"{line}, with the model's weights rounded alike; from the model itself: same tokens kept "
        f"{far.indices_equal:.0%}, logits within {far.logits_max_diff:.1g}, greedy answers equal {far.greedy_match:.0%}"
    )


def _values(out: Path) -> list[str]:
    """What is worth a line of what the bundle says of its precisions, value by value."""
    from exporters.onnx import VALUES

    path = out / VALUES
    notes: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lines = []
    for name, note in notes.items():
        for row in note.get("float32", ())[:WORST]:
            lines.append(f"{name} computes in float32 in {row['module']}: {row['value']} reaches {row['largest']:.3g}")
        if len(note.get("float32", ())) > WORST:
            lines.append(f"{name} computes {len(note['float32']) - WORST} more values in float32, see {path.name}")
        if note.get("values"):
            worst = ", ".join(
                f"{row['module']} {row['operator']} {_share(row['relative'])}" for row in note["values"][:WORST]
            )
            lines.append(f"{name} values furthest off: {worst}")
        left = sum(counts["left"] for counts in note.get("graphs", {}).values())
        if left:
            lines.append(f"{name} leaves {left} weights as they are: their inputs do not divide into blocks")
    return lines


def _share(relative: float | None) -> str:
    return "overflows" if relative is None else f"{relative:.2%}"

"""``vtc export``: a compressed model as an ONNX bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporters.precision import LAYER_TOLERANCE, PRECISIONS, precision
from vtc.bundle.facts import precision_and_form
from vtc.cli.data_options import images_outside_flag
from vtc.cli.image_options import image_option_flags
from vtc.cli.output import say
from vtc.cli.verb import separated, suggest, tell_warnings, verb
from vtc.facts.layout import ImageOptions
from vtc.heap import return_large_blocks
from vtc.progress import progress

if TYPE_CHECKING:
    from exporters.parity import Parity

WORST = 3
"""Values that are told of; all stand in the bundle's precision.json."""

MOST = 0.9
"""Share of answers, or of kept tokens, that is most of them."""


_FORMS = """A precision with -ort behind it is rewritten for ONNX Runtime, with fused operators and a cache in place,
with -opset23 into the standard operators for attention, norms and rotary positions. Both share the weights of
the portable graphs, which are always there. vtc optimize adds them to a bundle that exists."""


def _with_precisions(text: str) -> str:
    """Help with a paragraph of what precisions there are."""
    lines = "\n".join(f"  {one.name:<13}{one.summary}" for one in PRECISIONS)
    return f"{text}\n\n\b\nPrecisions:\n{lines}\n\n{_FORMS}"


@verb(
    "A compressed model as an ONNX bundle.",
    help=_with_precisions(
        """Export DIRECTORY, which vtc compress wrote, as an ONNX bundle.

The bundle is compared with the PyTorch model before it is called done: kept tokens, logits, greedy answers. An
interrupted export is taken up again by the same command."""
    ),
)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Bundle directory to write.")
@click.option(
    "--variant",
    "--precision",
    "variants",
    multiple=True,
    default=("fp32",),
    show_default=True,
    callback=separated,
    metavar="V",
    help="A precision as above, or an optimised variant such as q4-ort; several with commas or if repeated.",
)
@click.option(
    "--target",
    "targets",
    metavar="T",
    multiple=True,
    help="Make the bundle ready for T, a target for engines (vtc ls targets): graphs that it could not take are "
    "refused, and build.sh and README.md say how engines are built there. Several if repeated.",
)
@click.option("--opset", default=20, show_default=True, type=click.IntRange(18, 22), help="ONNX operator set.")
@click.option("--model", metavar="MODEL", help="Where the checkpoint is now, if it has moved.")
@click.option(
    "--data",
    metavar="D",
    help="Images and questions to compare on, and to round weights in few bits by: a directory with data.jsonl, or "
    "'reference'. Without it the reference model is asked about drawn digits, other models about random images, and "
    "their weights become the nearest numbers.",
)
@images_outside_flag
@click.option("--samples", default=16, show_default=True, type=click.IntRange(1), help="Prompts to compare on.")
@click.option(
    "--tune",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="STEPS",
    help="Learn the scales of weights in few bits, so that the bundle says what the model says on prompts of --data; "
    "100 steps or so take the time of a thousand prompts.",
)
@image_option_flags(several=True)
def command(directory: Path, image_options: list[ImageOptions], **asked: Any) -> None:
    import vtc

    return_large_blocks()
    with progress() as tell:
        result = vtc.export(directory, image_options=image_options, progress=tell, **asked)
    for name, figures in result.parity.items():
        say(f"{result.path}: {_told(name, figures)}")
    for line in _values(result.path):
        say(f"{result.path}: {line}")
    tell_warnings(directory)
    if asked["targets"]:
        targets = list(dict.fromkeys(asked["targets"]))
        say(f"{result.path}: suits {', '.join(targets)}; see {result.path / 'README.md'}")
        suggest("build", result.path, "--target", targets[0])
    else:
        suggest("validate", result.path, *(["--data", asked["data"]] if asked["data"] else []))


def _told(name: str, figures: Parity) -> str:
    """Say in words what the comparison of a precision with the model came to."""
    if figures.layers is not None:
        return (
            f"{name} is exported right: layers are within {figures.layers:.1g} of PyTorch's with the same rounding "
            f"({LAYER_TOLERANCE:g} is allowed). "
            f"What rounding itself changes: {_change(figures)}"
        )
    emulated = ", emulated in float32" if figures.emulated else ""
    tolerance = precision(precision_and_form(name)[0]).tolerance
    if figures.original is None:
        return f"{name} is exported right, by {figures.samples} prompts{emulated}: {_figures(figures, tolerance)}"
    return (
        f"{name} is exported right, by {figures.samples} prompts{emulated}, beside the model with its weights rounded "
        f"alike: {_figures(figures, tolerance)}. What rounding itself changes: {_change(figures.original)}"
    )


def _figures(figures: Parity, tolerance: float | None = None) -> str:
    kept = "" if figures.tokens_equal is None else f"same tokens kept {100 * figures.tokens_equal:.3g}%, "
    allowed = "" if tolerance is None else f" ({tolerance:g} is allowed)"
    logits = f"logits within {figures.logits_max_diff:.1g}{allowed}"
    return f"{kept}{logits}, greedy answers equal {figures.greedy_match:.0%}"


def _change(figures: Parity) -> str:
    """Say how far rounding takes a bundle from the model, and how bad that is."""
    if figures.greedy_match == 1:
        verdict = "good: no answer changed"
    elif figures.greedy_match >= MOST:
        verdict = "most answers stayed; vtc validate tells whether accuracy held"
    else:
        verdict = "many answers changed, rightly or wrongly; vtc validate tells whether accuracy held"
    if figures.tokens_equal is not None and figures.tokens_equal < MOST:
        verdict += f"; {1 - figures.tokens_equal:.0%} of the kept tokens are others, which is many"
    return f"{_figures(figures)} ({verdict})"


def _values(out: Path) -> list[str]:
    """List the lines that a user should see of what the bundle says of its precisions."""
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
            lines.append(
                f"{name} values that rounding moves most, for whoever tunes it: {worst} of the largest they reach; "
                "whether that harms, the answers above tell"
            )
        if note.get("layers"):
            lines.append(_rounded(name, note))
        left = sum(counts["left"] for counts in note.get("graphs", {}).values())
        if left:
            lines.append(f"{name} leaves {left} weights as they are: their inputs do not divide into blocks")
    return lines


def _rounded(name: str, note: Mapping[str, Any]) -> str:
    """Say how weights of a precision were rounded."""
    if note["method"] == "nearest":
        return f"{name} has each weight as its nearest number; --data with questions of real use brings it closer"
    wide = sum(row["bits"] == 8 for row in note["layers"])
    worst = ", ".join(f"{row['layer']} {row['error']:.2%}" for row in note["layers"][:WORST] if row["error"])
    return (
        f"{name} is rounded by samples (GPTQ), {wide} of {len(note['layers'])} weights in 8 bits; outputs that are "
        f"furthest off, squared: {worst}{_tuned(note.get('tuning'))}"
    )


def _tuned(tuning: Mapping[str, float] | None) -> str:
    """Say what became of learning scales."""
    if tuning is None:
        return ""
    before, after = (f"{tuning[name]:.3g}" for name in ("before", "after"))
    if tuning["after"] < tuning["before"]:
        return f"; tuning took the KL divergence from the model's from {before} to {after} nats on prompts held out"
    return f"; tuning was of no use ({before} nats of KL divergence from the model's, {after} then), so scales stay"


def _share(relative: float | None) -> str:
    return "overflows" if relative is None else f"{relative:.2%}"

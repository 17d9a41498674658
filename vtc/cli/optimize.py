"""``vtc optimize``: optimised variants for a bundle that exists."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from vtc.cli.data_options import images_outside_flag
from vtc.cli.output import print_json, say
from vtc.cli.verb import separated, suggest, verb
from vtc.progress import progress


@verb("Add variants to a bundle that run faster on a CPU or a GPU.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="What the bundle is to run on.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    callback=separated,
    metavar="V",
    help="Such as q4-ort; several with commas or if repeated.  [default: those that suit the device]",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Bundle directory to write.  [default: the bundle itself]"
)
@click.option(
    "--data", metavar="D", help="Images and questions to compare on, as for vtc export.  [default: random images]"
)
@images_outside_flag
@click.option("--samples", default=8, show_default=True, type=click.IntRange(1), help="Prompts to compare on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    bundle: Path,
    device: Literal["cpu", "cuda"],
    variants: list[str],
    out: Path | None,
    data: str | None,
    samples: int,
    as_json: bool,
) -> None:
    r"""Add optimised variants to BUNDLE, rewritten from its portable graphs for ONNX Runtime.

    They share the portable graphs' weights, and are compared with them before anything is written. What runs the bundle
    takes them without being told, where the device suits them.

    \b
    vtc optimize out/bundle --for cpu
    vtc optimize out/bundle --variant q4-ort,fp32-opset23 -o out/optimised
    """
    import vtc

    with progress() as tell:
        found = vtc.optimize(
            bundle, device=device, variants=variants, out=out, data=data, samples=samples, progress=tell
        )
    written = bundle if out is None else out
    if as_json:
        print_json(
            {"kind": "optimize", "out": str(written), "variants": {name: asdict(one) for name, one in found.items()}}
        )
    else:
        for name, one in found.items():
            say(
                f"{written}: {name} computes what {one.against} does, by {one.samples} prompts: logits within "
                f"{one.logits_max_diff:.1g}, greedy answers equal {one.greedy_match:.0%}"
            )
    suggest("bench", written, "--precision", next(iter(found)))

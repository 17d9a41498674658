"""`vtc export`: a compressed model as an ONNX bundle."""

from __future__ import annotations

from pathlib import Path

import click

from vtc.cli.serving import serving_options, servings
from vtc.heap import return_large_blocks
from vtc.layout import Grid
from vtc.progress import progress


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Bundle directory to write.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=("fp32",),
    show_default=True,
    type=click.Choice(["fp32", "fp16"]),
    help="Give it twice for both in one bundle.",
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
@serving_options(several=True)
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
    """Export DIRECTORY, which vtc compress wrote, as an ONNX bundle.

    The bundle is compared with the PyTorch model before it is called done: kept tokens, logits, greedy answers. An
    interrupted export is taken up again by the same command.
    """
    from exporters.targets import target
    from vtc.artifact import check_output

    check_output(out, "bundle")
    targets = [target(name) for name in dict.fromkeys(target_names)]
    for one in targets:
        one.check_export(precisions, opset)
    return_large_blocks()
    with progress() as tell:
        from exporters.onnx import Request, export
        from vtc.calibrate import samples_from
        from vtc.checkpoint import load_compressed, made_for

        model, recipe, origin = load_compressed(directory, base)
        wanted = servings(image_size, tiles, frames)
        models = [made_for(model, recipe, serving) for serving in wanted] or [model]
        source = data or ("reference" if origin.name == "reference" else None)
        share = -(-samples // len(models))
        request = Request(
            models=models,
            recipe=recipe,
            origin=origin,
            samples=[sample for one in models for sample in samples_from(one.adapter, source, share, seed=0)],
            precisions=tuple(dict.fromkeys(precisions)),  # type: ignore[arg-type]  # click.Choice checked them
            opset=opset,
            targets=targets,
            progress=tell,
        )
        parity = export(request, out)
    for precision, figures in parity.items():
        click.echo(
            f"{out}: {precision} parity on {figures.samples} prompts: same tokens kept {figures.indices_equal:.0%}, "
            f"logits within {figures.logits_max_diff:.1g}, greedy answers equal {figures.greedy_match:.0%}"
        )
    if targets:
        click.echo(f"{out}: suits {', '.join(one.name for one in targets)}; see {out / 'README.md'}")

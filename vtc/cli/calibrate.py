"""``vtc calibrate``: measure a model on data, for whatever is decided later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vtc.cli.data_options import images_outside_flag
from vtc.cli.expert_tables import expert_data, print_experts, print_skipping
from vtc.cli.image_options import image_option_flags
from vtc.cli.output import print_json
from vtc.cli.placement_options import placement_flags
from vtc.cli.verb import suggest, verb
from vtc.progress import progress


@verb("Measure who uses which expert of a mixture of experts, or what skipping some would lose.")
@click.argument("model", metavar="MODEL|COMPRESSED_DIR")
@click.option("--experts", is_flag=True, help="Measure which modality uses which expert.")
@click.option("--skip", type=float, metavar="SHARE", help="Measure what skipping a share of the expert calls loses.")
@click.option("--recipe", metavar="R", help="Measure with the visual tokens that a recipe keeps, too.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: stages.0.keep=64.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="File: safetensors, or JSON.")
@click.option(
    "--data", metavar="D", help="Images and questions to measure on: a directory with data.jsonl, or 'reference'."
)
@images_outside_flag
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="Questions to measure on.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Draws the questions.")
@image_option_flags()
@placement_flags("the model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str,
    experts: bool,
    skip: float | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure the experts of MODEL.

    With --experts, layer by layer which modality uses which. For each expert: tokens that chose it, text and visual;
    the router's weights; the norms of its output; which experts are chosen together; soft modality scores. The file is
    read by vtc inspect --experts.

    With --skip, what it would lose if tokens skipped chosen experts that count for little: thresholds for text and
    visual tokens, the share of expert calls that they skip, and how far the next token's distribution moves. Nothing
    that vtc exports skips experts.
    """
    import vtc

    if experts == (skip is not None):
        raise click.UsageError("give --experts or --skip SHARE, one of the two")
    if skip is not None:
        if recipe is not None or overrides:
            raise click.UsageError("--skip measures a model as it is; compress it with the recipe, and give that")
        with progress() as tell:
            report = vtc.expert_skipping(model, skip, out=out, progress=tell, **asked)
        print_json(report.to_dict()) if as_json else print_skipping(report)
        return
    asked |= {"recipe": recipe, "overrides": overrides}
    with progress() as tell:
        found = vtc.expert_statistics(model, out=out, progress=tell, **asked)
    if as_json:
        print_json(expert_data(found))
    else:
        print_experts(found)
    suggest("inspect", model, "--experts", out)

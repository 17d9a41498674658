"""``vtc calibrate``: measure a model on data, for whatever is decided later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vtc.cli.data_options import images_outside_flag
from vtc.cli.expert_tables import expert_data, print_experts
from vtc.cli.image_options import image_option_flags
from vtc.cli.output import print_json
from vtc.cli.placement_options import placement_flags
from vtc.cli.verb import suggest, verb
from vtc.progress import progress


@verb("Measure who uses which expert of a mixture of experts.")
@click.argument("model", metavar="MODEL|COMPRESSED_DIR")
@click.option("--experts", is_flag=True, required=True, help="Measure which modality uses which expert.")
@click.option("--recipe", metavar="R", help="Measure with the visual tokens that a recipe keeps, too.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: stages.0.keep=64.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="File to write, .safetensors.")
@click.option(
    "--data", metavar="D", help="Images and questions to measure on: a directory with data.jsonl, or 'reference'."
)
@images_outside_flag
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="Questions to measure on.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Draws the questions.")
@image_option_flags()
@placement_flags("the model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, experts: bool, out: Path, as_json: bool, **asked: Any) -> None:
    """Measure which modality uses which expert of MODEL, layer by layer.

    For each expert: tokens that chose it, text and visual; the router's weights; the norms of its output; which experts
    are chosen together; soft modality scores. The file is read by vtc inspect --experts.
    """
    import vtc

    with progress() as tell:
        found = vtc.expert_statistics(model, out=out, progress=tell, **asked)
    if as_json:
        print_json(expert_data(found))
    else:
        print_experts(found)
    suggest("inspect", model, "--experts", out)

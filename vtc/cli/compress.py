"""``vtc compress``: apply a recipe to a model and calibrate it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vtc.cli.data_options import images_outside_flag
from vtc.cli.image_options import image_option_flags
from vtc.cli.output import say
from vtc.cli.placement_options import placement_flags
from vtc.cli.verb import suggest, tell_warnings, verb
from vtc.progress import progress


@verb("Apply a recipe to a model and calibrate it.")
@click.argument("model")
@click.option("--recipe", required=True, metavar="R", help="Shipped recipe or a YAML file (vtc ls recipes).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: stages.0.keep=64.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option(
    "--data", metavar="D", help="Images and questions to calibrate on: a directory with data.jsonl, or 'reference'."
)
@images_outside_flag
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="Samples to calibrate on.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Draws the samples.")
@click.option("--retrain", is_flag=True, help="Train a part even where one ships with the model.")
@image_option_flags()
@placement_flags("the model")
def command(**asked: Any) -> None:
    """Apply a recipe to MODEL and calibrate what it leaves open.

    MODEL is a checkpoint directory, or 'reference' for the small model that ships with vtc. An interrupted run is
    taken up again by the same command.
    """
    import vtc

    with progress() as tell:
        result = vtc.compress(asked.pop("model"), progress=tell, **asked)
    plan = result.plan
    say(
        f"{result.path}: {result.recipe.name}, {plan.visual_tokens_in} -> {plan.keep} visual tokens "
        f"(layer average {plan.layer_average:.1f}), {len(plan.decoder_layers)} decoder layers"
    )
    tell_warnings(result.path)
    suggest("export", result.path, "-o", result.path.with_name("bundle") if result.path.name else Path("../bundle"))

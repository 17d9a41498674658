"""Train the parts that a recipe leaves open, on one device or, with ``accelerate launch -m vtc.training``, on several.

``vtc compress`` does the same on the way; a file made here is named in a recipe as ``checkpoint``.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import click

from vtc.calibrate.calibrator import needs_data
from vtc.calibrate.compress import Calibration, load_checkpoint, trained_parts
from vtc.data import records
from vtc.data.datasets import data_for
from vtc.errors import InputError, VtcError
from vtc.progress import progress
from vtc.recipe import load_recipe
from vtc.selectors.trained import read_metadata
from vtc.training.auto import left_open
from vtc.training.verdict import WARNING


@click.command()
@click.argument("model")
@click.option("--recipe", "recipe_name", required=True, metavar="R", help="One with a trained selector.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe.")
@click.option("--data", metavar="D", help="A directory with data.jsonl, or 'reference'.")
@click.option("--images-outside", is_flag=True, help="Images that --data names may lie outside its directory.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Directory for their files and logs.")
def main(
    model: str, recipe_name: str, overrides: tuple[str, ...], data: str | None, images_outside: bool, out: Path
) -> None:
    """Train what RECIPE leaves open for MODEL; the same command takes up an interrupted run."""
    recipe = load_recipe(recipe_name, overrides)
    if not left_open(recipe):
        raise InputError(f"recipe {recipe.name} leaves nothing to training; write checkpoint: auto")
    source = data_for(model, data)
    if source is None:
        raise needs_data(recipe)
    checkpoint = load_checkpoint(model)
    out.mkdir(parents=True, exist_ok=True)
    with progress() as tell, records.images_outside() if images_outside else nullcontext():
        train = trained_parts(checkpoint, out, Calibration(source, retrain=True), tell)
        for number in left_open(recipe):
            file = train(recipe, number)
            click.echo(file)
            if warning := read_metadata(file).get(WARNING):
                click.echo(f"warning: {warning}", err=True)


if __name__ == "__main__":
    try:
        main()
    except VtcError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)

"""`vtc compress`: apply a recipe to a model and calibrate it."""

from __future__ import annotations

from pathlib import Path

import click

from vtc.cli.image_options import image_option_flags, image_options
from vtc.facts.layout import Grid
from vtc.progress import progress


@click.command()
@click.argument("model")
@click.option(
    "--recipe", "recipe_name", required=True, metavar="R", help="Built-in recipe or a YAML file (vtc ls recipes)."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, e.g. stages.0.keep=64.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option(
    "--data", metavar="D", help="Images and questions to calibrate on: a directory with data.jsonl, or 'reference'."
)
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="Samples to calibrate on.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Draws the samples.")
@click.option("--retrain", is_flag=True, help="Train a selector even where one ships with the model.")
@image_option_flags()
def command(
    model: str,
    recipe_name: str,
    overrides: tuple[str, ...],
    out: Path,
    data: str | None,
    samples: int,
    seed: int,
    retrain: bool,
    image_size: Grid | None,
    tiles: Grid | None,
    frames: int,
) -> None:
    """Apply a recipe to MODEL and calibrate what it leaves open.

    MODEL is a checkpoint directory, or 'reference' for the small model that ships with vtc. An interrupted run is
    taken up again by the same command.
    """
    from vtc.artifact import check_output, staging_dir
    from vtc.models import load_adapter, model_digest, read_facts, resolve_model
    from vtc.plan import plan
    from vtc.recipe import load_recipe

    recipe = load_recipe(recipe_name, overrides)
    path = resolve_model(model)
    wanted = image_options(image_size, tiles, frames)
    plan(recipe, read_facts(path, wanted))  # every fault of the recipe is told before anything is loaded
    check_output(out, "compressed")
    source = data or ("reference" if model == "reference" else None)
    if recipe.autos and source is None:
        from vtc.calibrate.calibrator import needs_data

        raise needs_data(recipe)

    with progress() as tell:
        from vtc.calibrate.calibrator import Calibrator
        from vtc.calibrate.measurements import Measurements
        from vtc.compressed.build import apply_recipe
        from vtc.compressed.checkpoint import Origin, save_compressed
        from vtc.data.samples import samples_from
        from vtc.training.auto import AutoTrained

        digest = model_digest(path)
        adapter = load_adapter(path, wanted)
        work = staging_dir(out)
        work.mkdir(parents=True, exist_ok=True)
        measured = [key for key in recipe.autos if not key.endswith(".checkpoint")]
        chosen = samples_from(adapter, source, samples, seed) if measured else []
        pruner = AutoTrained(adapter, digest, work, source, retrain, tell)
        pruner.discard_others(recipe)
        measurements = Measurements(work / f".measurements-{digest[:12]}-{samples}-{seed}.json")
        resolved = Calibrator(adapter, chosen, measurements, digest, tell, pruner).resolve(recipe)
        compressed = apply_recipe(adapter, resolved, model_digest=digest)
        origin = Origin("reference" if model == "reference" else str(path.resolve()), digest)
        save_compressed(work, out, compressed, resolved, origin, measurements.values)
    token_plan = compressed.plan
    click.echo(
        f"{out}: {recipe.name}, {token_plan.visual_tokens_in} -> {token_plan.keep} visual tokens "
        f"(layer average {token_plan.layer_average:.1f}), {len(token_plan.decoder_layers)} decoder layers"
    )

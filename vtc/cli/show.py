"""``vtc show``: a picture of the visual tokens that a recipe keeps."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtc.cli.image_options import image_option_flags, image_options
from vtc.facts.layout import ANY_IMAGE, Grid, ImageOptions

if TYPE_CHECKING:
    from vtc.evaluate.contestants import Opened

QUESTION = "What is in the image?"


@click.command(short_help="Draw the visual tokens that a recipe keeps.")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("target", required=False, type=click.Path(path_type=Path), metavar="[BUNDLE|COMPRESSED_DIR]")
@click.option("--recipe", "recipe_name", metavar="R", help="Without a target: a shipped recipe or a YAML file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: stages.0.keep=64.")
@click.option("--model", default="reference", show_default=True, metavar="MODEL", help="With --recipe: the model.")
@image_option_flags()
@click.option("--prompt", default=QUESTION, show_default=True, help="Question, for recipes that prune by it.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Picture to write (.png).",
)
def command(
    image: Path,
    target: Path | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    model: str,
    image_size: Grid | None,
    tiles: Grid | None,
    frames: int,
    prompt: str,
    output: Path,
) -> None:
    r"""Draw which visual tokens of IMAGE enter the decoder, and which stay behind each cut inside it.

    \b
    vtc show photo.jpg --recipe learnpruner --prompt "what digit is shown?" -o kept.png
    vtc show photo.jpg out/bundle --prompt "what digit is shown?" -o kept.png
    """
    from vtc.errors import InputError
    from vtc.evaluate.contestants import chooses_places
    from vtc.evaluate.picture import Panel, draw, seen_by_model
    from vtc.runtime.image import open_image

    if (target is None) == (recipe_name is None):
        raise InputError("say what to show: a bundle or compressed model, or --recipe R (one of them)")
    wanted = image_options(image_size, tiles, frames)
    if target is not None and wanted != ANY_IMAGE:
        raise InputError(
            f"{target} was made for images of its own; --image-size, --tiles and --frames go with --recipe"
        )
    if output.suffix.lower() != ".png":
        raise InputError(f"{output}: pictures are PNG files; give a name that ends in .png")
    picture = open_image(image)
    opened = _open(target, model, recipe_name, overrides, wanted)
    contestant, plan = opened.contestant, opened.plan or {}
    predictor: Any = contestant.predictor
    if contestant.locator is None:
        problem = "chooses no places in the image, so there are none to show"
        if chooses_places(plan):
            problem = "chooses among several views or layouts of an image, and only one grid of tokens can be drawn"
        raise InputError(f"{contestant.name}: {problem}")
    asked = [[picture]], [contestant.chat(prompt)]
    panels = [Panel(f"as the model sees it: {plan['visual_tokens_in']} tokens")]
    captions = ["into the decoder", *(f"from decoder layer {layer} on" for layer in _cut_layers(plan))]
    for caption, kept in zip(captions, predictor.kept(*asked), strict=True):
        panels.append(Panel(f"{caption}: {kept.shape[1]}", kept[0]))
    answer = predictor.generate(*asked)[0].text
    pixels = seen_by_model(_preprocess(predictor), picture)
    title = f"{contestant.name}, {contestant.layer_average:.3g} tokens on average   |   {prompt}   {answer}"
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(pixels, contestant.locator.grid, panels, title).save(output)
    click.echo(f"{output}: {', '.join(panel.caption for panel in panels[1:])}; answer: {answer}")


def _open(
    target: Path | None, model: str, recipe_name: str | None, overrides: tuple[str, ...], wanted: ImageOptions
) -> Opened:
    from vtc.errors import InputError
    from vtc.evaluate.contestants import compressed_contestant, manifest_of, open_bundle, open_compressed

    if target is not None:
        manifest = manifest_of(target)
        return open_compressed(target) if manifest and manifest["kind"] == "compressed" else open_bundle(target)
    from vtc.calibrate.calibrator import Calibrator
    from vtc.calibrate.measurements import Measurements
    from vtc.compressed.build import apply_recipe
    from vtc.models import load_adapter, model_digest, resolve_model
    from vtc.recipe import load_recipe
    from vtc.training.auto import AutoTrained

    recipe = load_recipe(str(recipe_name), overrides)
    left_open = [key for key in recipe.autos if not key.endswith(".checkpoint")]
    if left_open:
        raise InputError(f"{recipe.name}: {left_open[0]} is left to calibration; vtc compress it, then show that")
    path = resolve_model(model)
    adapter, digest = load_adapter(path, wanted), model_digest(path)
    with tempfile.TemporaryDirectory() as directory:
        shipped = AutoTrained(adapter, digest, Path(directory), source=None)
        resolved = Calibrator(adapter, [], Measurements(), digest, parts=shipped).resolve(recipe)
        return compressed_contestant(recipe.name, apply_recipe(adapter, resolved, model_digest=digest), digest)


def _cut_layers(plan: Any) -> list[int]:
    return [plan["decoder_layers"][s["layers"][0]] for s in plan["segments"] if s["enters"] == "prune"]


def _preprocess(predictor: Any) -> Any:
    """From images to pixels (n, 3, H, W), of a bundle or a model in PyTorch; not in rows of patches."""
    from vtc.inputs.pixels import to_pixels

    spec = predictor.manifest.images[0].pixels if hasattr(predictor, "manifest") else predictor.adapter.pixels
    return partial(to_pixels, replace(spec, patches=None))

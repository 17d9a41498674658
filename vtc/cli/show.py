"""``vtc show``: a picture of the visual tokens that a recipe keeps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from vtc.cli.image_options import image_option_flags
from vtc.cli.verb import suggest, verb
from vtc.facts.layout import ANY_IMAGE, ImageOptions

QUESTION = "What is in the image?"


@verb("Draw the visual tokens that a recipe keeps.")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("target", required=False, type=click.Path(path_type=Path), metavar="[BUNDLE|COMPRESSED_DIR]")
@click.option("--recipe", metavar="R", help="Without a target: shipped recipe or a YAML file (vtc ls recipes).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: stages.0.keep=64.")
@click.option(
    "--model",
    default="reference",
    show_default=True,
    metavar="MODEL",
    help="With --recipe: 'reference' or a checkpoint directory.",
)
@image_option_flags()
@click.option("--prompt", default=QUESTION, show_default=True, help="Question, for recipes that prune by it.")
@click.option(
    "-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Picture to write (.png)."
)
def command(
    image: Path,
    target: Path | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    model: str,
    image_options: ImageOptions,
    prompt: str,
    out: Path,
) -> None:
    r"""Draw which visual tokens of IMAGE enter the decoder, and which go on after each cut inside it.

    \b
    vtc show photo.jpg --recipe learnpruner --prompt "what digit is shown?" -o kept.png
    vtc show photo.jpg out/bundle --prompt "what digit is shown?" -o kept.png
    """
    from vtc.errors import InputError
    from vtc.evaluate.contestants import chooses_places, open_finished, open_recipe
    from vtc.evaluate.picture import Panel, draw, seen_by_model
    from vtc.recipe import load_recipe
    from vtc.runtime.image import open_image

    if target is not None and image_options != ANY_IMAGE:
        raise InputError(
            f"{target} was made for images of its own; --image-size, --tiles and --frames go with --recipe"
        )
    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: pictures are PNG files; give a name that ends in .png")
    picture = open_image(image)
    if target is not None and recipe is None:
        opened = open_finished(target)
    elif recipe is not None and target is None:
        opened = open_recipe(model, load_recipe(recipe, overrides), image_options)
    else:
        raise InputError("say what to show: a bundle or compressed model, or --recipe R (one of them)")
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
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(pixels, contestant.locator.grid, panels, title).save(out)
    click.echo(f"{out}: {', '.join(panel.caption for panel in panels[1:])}; answer: {answer}")
    if recipe is not None:
        suggest("compress", model, "--recipe", recipe, "-o", "out/compressed")


def _cut_layers(plan: Any) -> list[int]:
    return [plan["decoder_layers"][s["layers"][0]] for s in plan["segments"] if s["enters"] == "prune"]


def _preprocess(predictor: Any) -> Any:
    """From images to pixels (n, 3, H, W), of a bundle or a model in PyTorch; not in rows of patches."""
    from vtc.inputs.pixels import to_pixels

    spec = predictor.manifest.images[0].pixels if hasattr(predictor, "manifest") else predictor.adapter.pixels
    return partial(to_pixels, replace(spec, patches=None))

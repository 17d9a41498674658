"""``vtc show``: a picture of the visual tokens that a recipe keeps."""

from __future__ import annotations

import io
from pathlib import Path

import click

from vtc.cli.budget_options import keep_option
from vtc.cli.image_options import image_option_flags
from vtc.cli.output import say
from vtc.cli.placement_options import placement_flags
from vtc.cli.verb import suggest, verb
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.facts.placement import Device, Dtype, Placement

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
@keep_option("the largest")
@image_option_flags()
@placement_flags("the model")
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
    keep: int | None,
    image_options: ImageOptions,
    device: Device,
    dtype: Dtype,
    prompt: str,
    out: Path,
) -> None:
    r"""Draw which visual tokens of IMAGE enter the decoder, and which go on after each cut inside it.

    \b
    vtc show photo.jpg --recipe learnpruner --prompt "what digit is shown?" -o kept.png
    vtc show photo.jpg out/bundle --prompt "what digit is shown?" -o kept.png
    vtc show photo.jpg out/bundle --keep 36 -o kept.png
    """
    from vtc.errors import InputError
    from vtc.evaluate.contestants import open_finished, open_recipe
    from vtc.evaluate.kept_tokens import draw_kept_tokens
    from vtc.recipe import load_recipe
    from vtc.runtime.image import open_image
    from vtc.writing import check_place, write_whole

    if target is not None and image_options != ANY_IMAGE:
        raise InputError(
            f"{target} was made for images of its own; --image-size, --tiles and --frames go with --recipe"
        )
    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: pictures are PNG files; give a name that ends in .png")
    out.parent.mkdir(parents=True, exist_ok=True)
    check_place(out, image)
    picture, placement = open_image(image), Placement(device, dtype)
    if target is not None and recipe is None:
        opened = open_finished(target, placement)
    elif recipe is not None and target is None:
        opened = open_recipe(model, load_recipe(recipe, overrides), image_options, placement)
    else:
        raise InputError("say what to show: a bundle or compressed model, or --recipe R (one of them)")
    shown = draw_kept_tokens(opened.at_budget(keep), picture, prompt)
    stream = io.BytesIO()
    shown.picture.save(stream, "PNG")
    write_whole(out, stream.getvalue())
    say(f"{out}: {', '.join(shown.captions)}; answer: {shown.answer}")
    if recipe is not None:
        changed = [word for override in overrides for word in ("--set", override)]
        suggest("compress", model, "--recipe", recipe, *changed, "-o", "out/compressed")

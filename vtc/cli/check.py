"""``vtc check``: is this recipe right, does it fit a model, does the whole pipeline take it."""

from __future__ import annotations

from typing import Any

import click

from vtc.cli.image_options import image_option_flags
from vtc.cli.output import print_json, say, with_unit
from vtc.cli.verb import suggest, verb
from vtc.errors import InputError
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.plan import check, plans
from vtc.recipe import load_recipe


@verb("Validate a recipe, and with --smoke the whole pipeline on it.")
@click.argument("recipe_name", metavar="RECIPE")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: stages.0.keep=64.")
@click.option("--model", metavar="MODEL", help="Also check this model's files, and that the recipe fits it.")
@image_option_flags()
@click.option("--smoke", is_flag=True, help="Also compress, export, compare and run a tiny random model with it.")
@click.option(
    "--family",
    metavar="FAMILY",
    help="Of the tiny random model (vtc ls models).  [default: llava, or qwen3_vl_moe for mixtures of experts]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    recipe_name: str,
    overrides: tuple[str, ...],
    model: str | None,
    image_options: ImageOptions,
    smoke: bool,
    family: str | None,
    as_json: bool,
) -> None:
    """Validate RECIPE, a shipped name or a .yaml file.

    Every fault is reported at once, as file:line: key: what is wrong. Exit code 2 if there is any.
    """
    if model is None and image_options != ANY_IMAGE:
        raise InputError("--image-size, --tiles and --frames say what images --model is to serve; give a --model")
    recipe = load_recipe(recipe_name, overrides)
    check(recipe)
    report: dict[str, Any] = {
        "kind": "check",
        "recipe": recipe.name,
        "digest": recipe.digest,
        "stages": [stage.kind for stage in recipe.stages],
        "calibrates": recipe.autos,
    }
    kinds = ", ".join(stage.kind for stage in recipe.stages) or "no stages"
    lines = [f"{recipe.name}: {kinds}; digest {recipe.digest[:12]}"]
    if recipe.autos:
        lines.append(f"left to calibration: {', '.join(recipe.autos)}")
    if model is not None:
        from vtc.compressed.build import check_parts, check_questions
        from vtc.data.datasets import data_for
        from vtc.models import check_model, model_digest, read_facts, resolve_model
        from vtc.training.trainers import check_trainable

        path = resolve_model(model)
        facts = read_facts(path, image_options)
        planned = plans(recipe, facts)
        resolved = list(planned.values())[-1]
        check_trainable(recipe, facts)
        contents, outline = check_model(path, image_options)
        check_questions(outline, recipe)
        check_parts(outline, recipe, lambda: model_digest(path))
        needs_data = bool(recipe.autos) and data_for(model) is None
        report |= {"model": vars(contents), "plan": resolved.to_dict(), "needs_data": needs_data}
        if recipe.budgets:
            report["budgets"] = {str(keep): one.to_dict() for keep, one in planned.items()}
        lines += contents.lines()
        if needs_data:
            lines.append(f"vtc compress needs --data DIR for {', '.join(recipe.autos)}")
        for keep, one in planned.items():
            entering = f"{one.keep} of {one.visual_tokens_in} visual tokens enter the decoder"
            at = "" if keep is None else f" at a budget of {keep}"
            cost = "" if keep is None else f", {with_unit(one.flops['exact'])} FLOPs of a prefill"
            lines.append(f"fits {model}{at}: {entering}{cost}")
    if smoke:
        from exporters.smoke import run as run_pipeline
        from vtc.models import FAMILIES
        from vtc.progress import progress

        family = family or ("qwen3_vl_moe" if recipe.needs_experts else "llava")
        if family not in FAMILIES:
            raise InputError(f"no family '{family}'; families: {', '.join(FAMILIES)}")

        with progress() as show:
            run_pipeline(recipe, show, family)
        report["smoke"] = {"family": family, "result": "passed"}
        lines.append(f"smoke on a tiny {family}: passed")
    if as_json:
        print_json(report)
    else:
        say("\n".join([*lines, "ok"]))
    suggest("inspect", model or recipe.tried_on, "--recipe", recipe_name)

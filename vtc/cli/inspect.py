"""``vtc inspect``: what a recipe comes to on a model, before any work, or what a finished one came to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from vtc.artifact import MANIFEST
from vtc.cli.image_options import image_option_flags, image_options
from vtc.cli.output import print_json, print_table, with_unit
from vtc.errors import BundleError, InputError
from vtc.facts.layout import ANY_IMAGE, Grid, ImageOptions
from vtc.plan import TokenPlan, plan
from vtc.recipe import Recipe, load_recipe

DEFAULT_TEXT_TOKENS = 32


@dataclass(frozen=True)
class _Inspection:
    """What is shown: a plan beside the one of the model as it is."""

    model: str
    family: str
    recipe: str
    digest: str
    plan: TokenPlan
    baseline: TokenPlan

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "inspect",
            "model": self.model,
            "family": self.family,
            "recipe": self.recipe,
            "recipe_digest": self.digest,
            "plan": self.plan.to_dict(),
            "baseline": self.baseline.to_dict(),
        }


@click.command(short_help="Show what a recipe comes to on a model: tokens, FLOPs, KV bytes.")
@click.argument("target", metavar="MODEL|BUNDLE|DIR")
@click.option(
    "--recipe",
    "recipe_name",
    default=None,
    metavar="RECIPE",
    help="A shipped recipe or a .yaml file.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: stages.0.keep=64.")
@click.option(
    "--text-tokens",
    type=click.IntRange(min=0),
    help=f"Tokens of the prompt beside the image's.  [default: {DEFAULT_TEXT_TOKENS}]",
)
@image_option_flags()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    target: str,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    text_tokens: int | None,
    as_json: bool,
    image_size: Grid | None,
    tiles: Grid | None,
    frames: int,
) -> None:
    """Show tokens per stage and per decoder layer, FLOPs and KV bytes, before any work.

    MODEL is 'reference' or a checkpoint directory; a bundle or a compressed model shows its own plan.
    """
    wanted = image_options(image_size, tiles, frames)
    if target != "reference" and (Path(target) / MANIFEST).is_file():
        if recipe_name is not None or overrides or text_tokens is not None or wanted != ANY_IMAGE:
            raise InputError(f"{target} was made with a recipe; inspect the model it was made from to try another")
        inspection = _finished(Path(target))
    else:
        recipe = load_recipe("none" if recipe_name is None else recipe_name, overrides)
        inspection = _planned(target, recipe, DEFAULT_TEXT_TOKENS if text_tokens is None else text_tokens, wanted)
    if as_json:
        print_json(inspection.to_dict())
    else:
        _print(inspection)


def _planned(model: str, recipe: Recipe, text_tokens: int, wanted: ImageOptions) -> _Inspection:
    from vtc.models import read_facts, resolve_model

    facts = read_facts(resolve_model(model), wanted)
    return _Inspection(
        model=model,
        family=facts.family,
        recipe=recipe.name,
        digest=recipe.digest,
        plan=plan(recipe, facts, text_tokens=text_tokens),
        baseline=plan(Recipe(version=1, name="none", stages=()), facts, text_tokens=text_tokens),
    )


def _finished(directory: Path) -> _Inspection:
    """Read the plans of a bundle or a compressed model, once its files are verified."""
    try:
        kind = json.loads((directory / MANIFEST).read_bytes())["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        kind = "bundle"  # whose loader knows how to complain
    return _compressed(directory) if kind == "compressed" else _bundle(directory)


def _bundle(directory: Path) -> _Inspection:
    from vtc.bundle.manifest import load_manifest

    manifest = load_manifest(directory)
    try:
        plans = TokenPlan.from_dict(manifest.plan), TokenPlan.from_dict(manifest.baseline_plan)
        name = str(manifest.recipe["name"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{directory}: holds no plan that this vtc understands ({error}); export it again") from None
    model, family = str(manifest.model.get("name", "")), str(manifest.model.get("family", ""))
    return _Inspection(model, family, name, manifest.recipe_digest, *plans)


def _compressed(directory: Path) -> _Inspection:
    from vtc.artifact import read_manifest, verify_files
    from vtc.compressed.checkpoint import KIND, SCHEMA, image_options_of

    manifest = read_manifest(directory, KIND, SCHEMA)
    verify_files(directory, manifest["files"])
    recipe = load_recipe(directory / "recipe.yaml")
    return _planned(manifest["model"]["name"], recipe, DEFAULT_TEXT_TOKENS, image_options_of(manifest))


def _print(inspection: _Inspection) -> None:
    made, base = inspection.plan, inspection.baseline
    click.echo(f"model   {inspection.model} ({inspection.family}), {made.visual_tokens_in} visual tokens an image")
    click.echo(f"recipe  {inspection.recipe}, digest {inspection.digest[:12]}")
    if made.provisional:
        click.echo(f"assumed until calibration: {', '.join(made.provisional)}")
    click.echo()
    if made.stages:
        rows = [[s.kind, s.detail, f"{s.tokens_in} -> {s.tokens_out}"] for s in made.stages]
        print_table(["stage", "what it does here", ">visual tokens"], rows)
        click.echo()
    print_table(["decoder layers", ">visual tokens"], _layer_rows(made, len(base.decoder_layers)))
    click.echo()
    rows = [["visual tokens into the decoder", str(base.keep), str(made.keep), _share(made.keep, base.keep)]]
    averages = (base.layer_average, made.layer_average)
    rows.append(["visual tokens, layer average", *(f"{x:.4g}" for x in averages), _share(averages[1], averages[0])])
    for label, before, after in (
        ("prefill FLOPs, exact", base.flops["exact"], made.flops["exact"]),
        *((f"  of it {part}", base.flops_parts[part], made.flops_parts[part]) for part in made.flops_parts),
        ("decoder FLOPs, FastV's formula", base.flops["fastv"], made.flops["fastv"]),
        ("decoder FLOPs, PyramidDrop's formula", base.flops["pyramiddrop"], made.flops["pyramiddrop"]),
    ):
        rows.append([label, with_unit(before), with_unit(after), _share(after, before)])
    rows.append(
        [
            "KV cache",
            with_unit(base.kv_bytes, "B"),
            with_unit(made.kv_bytes, "B"),
            _share(made.kv_bytes, base.kv_bytes),
        ]
    )
    title = f"one image, {made.text_tokens} text tokens"
    print_table([title, ">original", f">{inspection.recipe}", ">share"], rows)


def _layer_rows(made: TokenPlan, layers: int) -> list[list[str]]:
    """List runs of decoder layers with the same number of visual tokens, as the model numbers them."""
    seen = dict(zip(made.decoder_layers, made.decoder_visual_tokens, strict=True))
    rows = []
    for count, run in groupby(range(layers), key=seen.get):
        numbers = list(run)
        label = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        rows.append([label, "removed" if count is None else str(count)])
    return rows


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"

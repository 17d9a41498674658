"""``vtc ls``: what there is to choose from."""

from __future__ import annotations

from typing import Any

import click

from vtc.cli.output import print_json, print_table


@click.command(short_help="List models, selectors, recipes or targets.")
@click.argument("what", type=click.Choice(["models", "selectors", "recipes", "targets"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(what: str, as_json: bool) -> None:
    """List models, selectors, recipes or targets."""
    entries = {"models": _models, "selectors": _selectors, "recipes": _recipes, "targets": _targets}[what]()
    if as_json:
        print_json({"kind": "ls", what: entries})
        return
    columns = {
        "models": {"name": "model", "family": "family", "summary": "what it is"},
        "selectors": {
            "name": "selector",
            "paper": "method",
            "summary": "keeps",
            "where": "acts",
            "needs": "needs",
            "text_aware": "text-aware",
        },
        "recipes": {
            "name": "recipe",
            "description": "what it does",
            "paper": "paper",
            "calibrates": "calibrates",
        },
        "targets": {"name": "target", "summary": "what it is", "state": "here"},
    }[what]
    print_table(list(columns.values()), [[_cell(entry[key]) for key in columns] for entry in entries])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _models() -> list[dict[str, Any]]:
    from vtc.models import FAMILIES

    shipped = {"name": "reference", "family": "llava", "summary": "the reference VLM that ships with vtc"}
    return [shipped] + [
        {
            "name": "DIR",
            "family": family,
            "summary": f"a checkpoint directory with model_type {family} in config.json",
        }
        for family in FAMILIES
    ]


def _selectors() -> list[dict[str, Any]]:
    from vtc.recipe.selectors import SELECTORS

    return [
        {
            "name": name,
            "summary": entry.summary,
            "needs": entry.reads,
            "where": entry.where,
            "text_aware": entry.text_aware,
            "options": [option for option in entry.model_fields if option != "name"],
            "paper": entry.paper,
        }
        for name, entry in SELECTORS.items()
    ]


def _recipes() -> list[dict[str, Any]]:
    from vtc.recipe import builtin_recipes, load_recipe

    entries = []
    for name, path in builtin_recipes().items():
        recipe = load_recipe(name)
        entries.append(
            {
                "name": name,
                "description": recipe.description,
                "paper": recipe.paper or "",
                "calibrates": recipe.autos,
                "stages": [stage.kind for stage in recipe.stages],
                "digest": recipe.digest,
                "path": str(path),
            }
        )
    return entries


def _targets() -> list[dict[str, Any]]:
    from vtc.cli.targets import entries

    return [
        {
            "name": one.name,
            "kind": one.kind,
            "summary": one.summary,
            "available": one.works,
            "state": one.state,
            "install": "" if one.works else one.install,
            **one.facts,
        }
        for one in entries()
    ]

"""``vtc ls``: what there is to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vtc.cli.output import print_json, print_table, say
from vtc.cli.verb import suggest, verb
from vtc.errors import InputError

COLUMNS = {
    "models": {"name": "model", "family": "family", "summary": "what it is"},
    "selectors": {"name": "selector", "place": "place", "text_aware": "text", "summary": "keeps"},
    "projectors": {"name": "projector", "text_aware": "text", "summary": "what it is"},
    "recipes": {"name": "recipe", "description": "what it does"},
    "targets": {"name": "target", "here": "here", "summary": "what it is"},
}
"""What a table shows of each entry; the rest is told by name, or with --json."""

ANY_DIRECTORY = "DIR"
"""Stands for the name of a model of one's own."""
IN_JSON = ("operators", "sources", "unverified")
"""What is too long for a table."""

NEXT = {
    "models": ("inspect", "reference", "--recipe", "fastervlm-25"),
    "selectors": ("ls", "selectors", "cls_attention"),
    "projectors": ("ls", "projectors", "deco"),
    "recipes": ("ls", "recipes", "fastervlm-25"),
    "targets": ("ls", "targets", "rtx"),
}


@verb("List models, selectors, projectors, recipes or targets.")
@click.argument("what", type=click.Choice(list(COLUMNS)))
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(what: str, name: str | None, as_json: bool) -> None:
    r"""List models, selectors, projectors, recipes or targets.

    With NAME, tell all about the one called so; of models, also a family.
    A recipe is told as its YAML, to start one of your own from.

    \b
    vtc ls selectors
    vtc ls recipes learnpruner > mine.yaml
    """
    found = {
        "models": _models,
        "selectors": _selectors,
        "projectors": _projectors,
        "recipes": _recipes,
        "targets": _targets,
    }
    entries = found[what]()
    if name is not None:
        _tell(what, _find(what, name, entries), as_json)
        return
    if as_json:
        print_json({"kind": "ls", what: entries})
    else:
        columns = COLUMNS[what]
        print_table(list(columns.values()), [[_cell(entry[key]) for key in columns] for entry in entries])
    suggest(*NEXT[what])


def _find(what: str, name: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    from vtc.recipe.faults import did_you_mean

    families = reversed(entries) if what == "models" else ()
    named: dict[str, dict[str, Any]] = {str(entry["family"]): entry for entry in families}
    named |= {str(entry["name"]): entry for entry in entries if entry["name"] != ANY_DIRECTORY}
    if name not in named:
        guess = did_you_mean(name, list(named)) or f"see vtc ls {what}"
        raise InputError(f"no {what.removesuffix('s')} '{name}', {guess}")
    return named[name]


def _tell(what: str, entry: dict[str, Any], as_json: bool) -> None:
    """Print one entry whole."""
    if as_json:
        print_json({"kind": "ls", what: [entry]})
    elif what == "recipes":
        say(Path(entry["path"]).read_text(encoding="utf-8"), newline=False)
        suggest("inspect", "reference", "--recipe", entry["name"])
    else:
        rows = [[key, _cell(value)] for key, value in entry.items() if key != "name" and key not in IN_JSON]
        print_table([what.removesuffix("s"), str(entry["name"])], rows)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    return ", ".join(map(_cell, value)) if isinstance(value, list | tuple) else str(value)


def _models() -> list[dict[str, Any]]:
    from vtc.models import FAMILIES
    from vtc.reference import SHIPPED

    shipped = [{"name": name, "family": "llava", "summary": summary} for name, (_, summary) in SHIPPED.items()]
    return shipped + [
        {"name": ANY_DIRECTORY, "family": family, "summary": "a directory with this model_type in config.json"}
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
            "place": entry.where.split()[-1],
            "text_aware": entry.text_aware,
            "options": [option for option in entry.model_fields if option != "name"],
            "paper": entry.paper,
        }
        for name, entry in SELECTORS.items()
    ]


def _projectors() -> list[dict[str, Any]]:
    from vtc.recipe.projectors import PROJECTORS

    return [
        {
            "name": name,
            "summary": entry.summary,
            "needs": entry.reads,
            "text_aware": entry.text_aware,
            "grid": entry.has_grid,
            "options": [option for option in entry.model_fields if option != "name"],
            "paper": entry.paper,
        }
        for name, entry in PROJECTORS.items()
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
    from exporters.available import entries

    return [
        {
            "name": one.name,
            "kind": one.kind,
            "summary": one.summary,
            "available": one.works,
            "here": "works" if one.works else "no",
            "state": one.state,
            "install": "" if one.works else one.install,
            **one.facts,
        }
        for one in entries()
    ]

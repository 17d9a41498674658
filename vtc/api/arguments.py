"""Arguments that several functions take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.recipe import Recipe

if TYPE_CHECKING:
    pass


def as_recipe(recipe: str | Path | Recipe, overrides: Sequence[str]) -> Recipe:
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, overrides)
    if not overrides:
        return recipe
    origin = recipe.source
    return parse_recipe(recipe.to_yaml(), file=recipe.name, directory=origin.directory, overrides=overrides)


def as_list(names: str | Sequence[str]) -> list[str]:
    """List names, each once, in order."""
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))

"""Arguments that several functions take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vtc.errors import InputError
from vtc.facts.placement import DEVICES, DTYPES, Device, Dtype, Placement
from vtc.recipe import Recipe, load_recipe, parse_recipe


def as_recipe(recipe: str | Path | Recipe, overrides: Sequence[str]) -> Recipe:
    """Load a recipe that is given by name or path, and override its values.

    Raises
    ------
    RecipeError
        With every fault, one a line.
    """
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, overrides)
    if not overrides:
        return recipe
    directory = recipe.source.directory
    return parse_recipe(recipe.to_yaml(), file=recipe.name, directory=directory, overrides=overrides)


def as_placement(device: Device, dtype: Dtype) -> Placement:
    """Where a model is put, from the names that a caller gives.

    Raises
    ------
    InputError
        If there is no such name.
    """
    for name, value, names in (("device", device, DEVICES), ("dtype", dtype, DTYPES)):
        if value not in names:
            raise InputError(f"{name} {value!r} is not one of {', '.join(names)}")
    return Placement(device, dtype)


def as_list(names: str | Sequence[str]) -> list[str]:
    """List names, each once, in order."""
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))

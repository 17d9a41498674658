"""How a file becomes a `Recipe`.

A file is found, read, overridden and validated, and every fault it has is reported at once as
``file:line: key.path: what is wrong``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from vtc.errors import RecipeError, all_faults
from vtc.files import read_bytes
from vtc.machine import PLACES, machine_fault
from vtc.recipe.faults import did_you_mean, faults
from vtc.recipe.overrides import override
from vtc.recipe.recipe import Recipe, RecipeSource
from vtc.recipe.yaml_lines import MAX_BYTES, read_yaml
from vtc.shown import PATH, shown

SUFFIXES = (".yaml", ".yml")


def builtin_recipes() -> dict[str, Path]:
    """Return the shipped recipes by name.

    Returns
    -------
    dict[str, Path]
        File stem → file, sorted by name: from ``recipes/`` in a checkout, from the package when vtc is
        installed.
    """
    package = Path(__file__).resolve().parents[1]
    for directory in (package / "_recipes", package.parent / "recipes"):
        if directory.is_dir():
            return {file.stem: file for file in sorted(directory.glob("*.yaml"), key=lambda file: file.stem)}
    return {}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load and validate a recipe.

    Parameters
    ----------
    name_or_path
        The name of a shipped recipe, or a file. A bare name is always a shipped recipe; a file has a
        directory separator or the suffix ``.yaml`` or ``.yml``, so that neither can shadow the other.
    overrides
        ``stages.0.keep=64`` and the like: a key path and a YAML value, applied before validation.

    Returns
    -------
    Recipe
        Knows where each of its values was written (`Recipe.source`).

    Raises
    ------
    RecipeError
        With every problem, one a line.
    """
    path = _locate(name_or_path)
    return parse_recipe(_read(path), file=_display(path), directory=path.parent, overrides=overrides)


def parse_recipe(
    text: str, *, file: str = "recipe", directory: Path | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Validate a recipe's text.

    Parameters
    ----------
    text
        YAML.
    file
        What messages call the text.
    directory
        Where paths in the recipe start; the current directory when not given.
    overrides
        As for `load_recipe`.

    Returns
    -------
    Recipe
        The validated recipe.

    Raises
    ------
    RecipeError
        With every problem, one a line.
    """
    file = shown(file, PATH)
    document = read_yaml(text)
    if document.problems:
        raise RecipeError(all_faults(f"{file}:{line}: {problem}" for line, problem in document.problems))
    source = RecipeSource(file, directory, document.lines)
    if not isinstance(document.data, dict):
        raise RecipeError(
            f"{file}:1: {'empty' if document.data is None else 'no mapping'}, a recipe starts with version: 1"
        )
    if overrides:
        source = override(document.data, overrides, source)
    try:
        return Recipe.model_validate(document.data).with_source(source)
    except ValidationError as error:
        found = sorted(
            faults(error.errors(), document.data, list(Recipe.model_fields)),
            key=lambda fault: source.line(fault[0]),
        )
        raise RecipeError(all_faults(source.message(path, fault) for path, fault in found)) from None


# Finding the file -------------------------------------------------------------------------------------------


def _locate(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or text.endswith(SUFFIXES) or "/" in text or os.sep in text
    if not is_path:
        builtin = builtin_recipes()
        if text not in builtin:
            guess = did_you_mean(text, list(builtin)) or "see vtc ls recipes;"
            raise RecipeError(f"no shipped recipe '{shown(text)}', {guess} a file needs a path or the suffix .yaml")
        return builtin[text]
    return Path(name_or_path)


def _read(path: Path) -> str:
    name = shown(_display(path), PATH)
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{name}: not UTF-8 text, this is not a recipe") from None
    except ValueError as error:
        raise RecipeError(f"{name}: {error}; this is not a recipe") from None
    except FileNotFoundError:
        raise RecipeError(f"{name}: no such recipe file") from None
    except OSError as error:
        reason = PLACES.get(error.errno or 0, error.strerror)
        raise machine_fault(error) or RecipeError(f"{name}: {reason}") from None


def _display(path: Path) -> str:
    """Return the path as the user would type it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere; or the current directory is gone
        return str(path)

"""Recipes: what a user may write, and how a file becomes a `Recipe`.

The words of a recipe are in `vtc.recipe.stages`. Here a file is found, read, overridden and validated, and
every fault it has is reported at once as ``file:line: key.path: what is wrong``.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from vtc.errors import RecipeError
from vtc.recipe.faults import did_you_mean, faults
from vtc.recipe.selectors import (
    TrainedSelectorEntry,
)
from vtc.recipe.stages import (
    Budget,
    PruneEntry,
    PruneInDecoderEntry,
    Stage,
)
from vtc.recipe.values import Written
from vtc.recipe.yaml_lines import MAX_BYTES, KeyPath, read_yaml

__all__ = ["Origin", "Recipe", "builtin_recipes", "load_recipe", "parse_recipe"]

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Origin:
    """Where a recipe was written, for messages; it does not count when recipes are compared."""

    file: str = field(default="recipe", compare=False)
    directory: Path | None = field(default=None, compare=False)
    lines: Mapping[KeyPath, int] = field(default_factory=dict, compare=False)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict, compare=False)

    def where(self, path: KeyPath) -> str:
        """The place of a value, or of the nearest around it: ``file:line`` or ``--set …``."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.overrides:
                return f"--set {self.overrides[path[:length]]}"
            if path[:length] in self.lines:
                return f"{self.file}:{self.lines[path[:length]]}"
        return self.file

    def line(self, path: KeyPath) -> int:
        """Return the line of a value, or of the nearest thing around it; 0 when the text is not known."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 0)

    def message(self, path: KeyPath, problem: str) -> str:
        """One line: where, the key's path, what is wrong with it."""
        return ": ".join(filter(None, [self.where(path), ".".join(map(str, path)), problem]))


def _version(value: object) -> int:
    if type(value) is int and value == 1:  # true and 1.0 are equal to 1 as well
        return value
    raise ValueError(f"this vtc reads version 1 recipes, not {reprlib.repr(value)}")


class Recipe(Written):
    """What to do to a model, for any model.

    ``stages`` stand in the order data meets them; none at all is the null recipe, the model as it is. A ``budget``
    takes the place of a ``keep`` in each pruning stage.
    `vtc.plan.plan` says what a recipe comes to for one model.
    """

    version: Annotated[Literal[1], BeforeValidator(_version)]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    description: str = ""
    paper: str | None = None
    budget: Budget | None = None
    stages: Annotated[tuple[Stage, ...], Field(strict=False)]
    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def origin(self) -> Origin:
        """Where the recipe was written."""
        return self._origin

    def with_origin(self, origin: Origin) -> Recipe:
        """Return the same recipe, written at `origin`."""
        recipe = self.model_copy()
        recipe._origin = origin
        return recipe

    def canonical(self) -> dict[str, Any]:
        """Return the recipe as plain JSON data with every default filled in."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def digest(self) -> str:
        """sha256 (hex) of what the recipe does: version, budget and stages; its name and prose do not count."""
        canonical = self.canonical()
        body = {key: canonical[key] for key in ("version", "budget", "stages") if key in canonical}
        return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return YAML text that loads to an equal recipe."""
        canonical = self.canonical()
        # Unicode's own line breaks are read back as plain ones unless they are escaped.
        breaks = any(mark in json.dumps(canonical, ensure_ascii=False) for mark in "\x85\u2028\u2029")
        return yaml.safe_dump(canonical, sort_keys=False, allow_unicode=not breaks, width=110)

    @property
    def autos(self) -> list[str]:
        """Key paths of the values left to calibration, such as ``stages.0.keep``."""
        return [".".join(map(str, path)) for path in _find_autos(self.canonical()["stages"], ("stages",))]

    def resolved(self, values: Mapping[str, Any]) -> Recipe:
        """Fill in what calibration found.

        Parameters
        ----------
        values
            A value for each key path, as `autos` names them: ``{"stages.0.layers": [5, 6]}``.

        Returns
        -------
        Recipe
            The recipe with those values; the ``count``, ``energy`` or ``training`` that guided a choice is gone with
            its ``auto``.

        Raises
        ------
        RecipeError
            A path is not one of `autos`.
        pydantic.ValidationError
            A value does not fit its key; a fault of the caller, not of the user.
        """
        unknown = sorted(set(values) - set(self.autos))
        if unknown:
            raise RecipeError(f"{self._origin.file}: {unknown[0]} is not left to calibration")
        data = self.canonical()
        for dotted, value in values.items():
            *parents, key = dotted.split(".")
            target: Any = data
            for parent in parents:
                target = target[int(parent)] if isinstance(target, list) else target[parent]
            target[key] = value
            target.pop(
                {"keep": "energy", "layers": "count", "layer": "criterion", "checkpoint": "training"}.get(key, ""), None
            )
        return Recipe.model_validate(data).with_origin(self._origin)

    def checkpoint(self, stage: int) -> Path:
        """Return the file of stage number `stage`'s trained selector.

        Raises
        ------
        RecipeError
            The stage has none, the file is missing, or a link leads it out of the recipe's directory.
        """
        entry = self.stages[stage]
        path = ("stages", stage, "selector", "checkpoint")
        if not isinstance(entry, PruneEntry | PruneInDecoderEntry) or not isinstance(
            entry.selector, TrainedSelectorEntry
        ):
            raise RecipeError(self._origin.message(("stages", stage), "has no checkpoint"))
        directory = (self._origin.directory or Path.cwd()).resolve()
        file = (directory / entry.selector.checkpoint).resolve()
        if not file.is_relative_to(directory):
            raise RecipeError(self._origin.message(path, "leads out of the recipe's directory"))
        if not file.is_file():
            raise RecipeError(self._origin.message(path, f"no such file: {file}"))
        return file


def _find_autos(value: object, path: KeyPath) -> Iterator[KeyPath]:
    if value == "auto":
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _find_autos(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _find_autos(item, (*path, index))


# Loading ----------------------------------------------------------------------------------------------------


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
        Knows where each of its values was written (`Recipe.origin`).

    Raises
    ------
    RecipeError
        With every problem, one a line.
    """
    path = _locate(name_or_path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{_display(path)}: larger than {MAX_BYTES // 1024} KiB, this is not a recipe")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{_display(path)}: not UTF-8 text, this is not a recipe") from None
    except OSError as error:
        raise RecipeError(f"{_display(path)}: {error.strerror}") from None
    return parse_recipe(text, file=_display(path), directory=path.parent, overrides=overrides)


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
    document = read_yaml(text)
    if document.problems:
        raise RecipeError("\n".join(f"{file}:{line}: {problem}" for line, problem in document.problems))
    origin = Origin(file, directory, document.lines)
    if not isinstance(document.data, dict):
        raise RecipeError(
            f"{file}:1: {'empty' if document.data is None else 'no mapping'}, a recipe starts with version: 1"
        )
    if overrides:
        origin = _override(document.data, overrides, origin)
    try:
        return Recipe.model_validate(document.data).with_origin(origin)
    except ValidationError as error:
        found = sorted(
            faults(error.errors(), document.data, list(Recipe.model_fields)),
            key=lambda fault: origin.line(fault[0]),
        )
        raise RecipeError("\n".join(origin.message(path, fault) for path, fault in found)) from None


# Finding the file -------------------------------------------------------------------------------------------


def _locate(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or text.endswith(SUFFIXES) or "/" in text or os.sep in text
    if not is_path:
        builtin = builtin_recipes()
        if text not in builtin:
            guess = did_you_mean(text, list(builtin)) or "see vtc ls recipes;"
            raise RecipeError(f"no shipped recipe '{text[:80]}', {guess} a file needs a path or the suffix .yaml")
        return builtin[text]
    path = Path(name_or_path)
    if path.is_dir():
        raise RecipeError(f"{text}: a directory, not a recipe file")
    if not path.is_file():
        raise RecipeError(f"{text}: no such recipe file")
    return path


def _display(path: Path) -> str:
    """Return the path as the user would type it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# Overrides --------------------------------------------------------------------------------------------------


def _override(data: dict[str, Any], overrides: Sequence[str], origin: Origin) -> Origin:
    """Apply ``--set`` to plain data in place; return an origin that knows which values came from where."""
    problems = []
    given: dict[KeyPath, str] = {}
    for override in overrides:
        dotted, equals, value_text = override.partition("=")
        document = read_yaml(value_text)
        if not equals or not dotted.strip():
            problems.append(f"--set {override}: write it as key.path=value, such as stages.0.keep=64")
        elif document.problems:
            problems.append(f"--set {override}: {document.problems[0][1]}")
        else:
            path, problem = _set_value(data, dotted.strip().split("."), document.data)
            if problem:
                problems.append(f"--set {override}: {problem}")
            else:
                given = {key: text for key, text in given.items() if key[: len(path)] != path}
                given[path] = override
    if problems:
        raise RecipeError("\n".join(problems))
    # A value inside an overridden one has no line of its own any more.
    lines = {key: line for key, line in origin.lines.items() if not any(key[: len(path)] == path for path in given)}
    return replace(origin, lines=lines, overrides=given)


def _set_value(data: dict[str, Any], keys: list[str], value: Any) -> tuple[KeyPath, str]:
    """Put `value` at `keys`; return the path and, when there is no such place, what is wrong."""
    target: Any = data
    path: KeyPath = ()
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(target, list):
            if not key.isdecimal() or int(key) >= len(target):
                has = f"has {len(target)} entries, counted from 0" if target else "is empty"
                return path, f"no {'.'.join([*map(str, path), key])}, {'.'.join(map(str, path))} {has}"
            step: str | int = int(key)
        else:
            step = key
            if not last and key == "selector" and isinstance(target.get(key), str):
                target[key] = {"name": target[key]}
            if not last and key not in target:
                return path, f"no {'.'.join([*map(str, path), key])} in this recipe"
        path = (*path, step)
        if last:
            target[step] = value
        else:
            target = target[step]
            if not isinstance(target, dict | list):
                return (
                    path,
                    f"{'.'.join(map(str, path))} is {reprlib.repr(target)}, nothing can be set inside it",
                )
    return path, ""

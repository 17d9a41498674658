"""Values given on the command line in place of those that a recipe's file has: ``--set stages.0.keep=64``."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vtc.errors import RecipeError, all_faults
from vtc.recipe.recipe import RecipeSource
from vtc.recipe.stages.base import METHODS
from vtc.recipe.yaml_lines import KeyPath, read_yaml
from vtc.shown import shown

_DIGITS = 9
"""Of the number of a stage."""


def override(data: dict[str, Any], overrides: Sequence[str], source: RecipeSource) -> RecipeSource:
    """Apply ``--set`` to plain data in place; return a source that knows which values came from where."""
    problems = []
    given: dict[KeyPath, str] = {}
    for override in overrides:
        dotted, equals, value_text = override.partition("=")
        document = read_yaml(value_text)
        if not equals or not dotted.strip():
            problems.append(f"--set {shown(override)}: write it as key.path=value, such as stages.0.keep=64")
        elif document.problems:
            problems.append(f"--set {shown(override)}: {document.problems[0][1]}")
        else:
            path, problem = _set_value(data, dotted.strip().split("."), document.data)
            if problem:
                problems.append(f"--set {shown(override)}: {problem}")
            else:
                given = {key: text for key, text in given.items() if key[: len(path)] != path}
                given[path] = override
    if problems:
        raise RecipeError(all_faults(problems))
    # A value inside an overridden one has no line of its own any more.
    lines = {key: line for key, line in source.lines.items() if not any(key[: len(path)] == path for path in given)}
    return replace(source, lines=lines, overrides=given)


def _set_value(data: dict[str, Any], keys: list[str], value: Any) -> tuple[KeyPath, str]:
    """Put `value` at `keys`; return the path and, when there is no such place, what is wrong."""
    target: Any = data
    path: KeyPath = ()
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(target, list):
            if not key.isdecimal() or len(key) > _DIGITS or int(key) >= len(target):
                has = f"has {len(target)} entries, counted from 0" if target else "is empty"
                return path, f"no {_dotted(*path, key)}, {_dotted(*path)} {has}"
            step: str | int = int(key)
        else:
            step = key
            if not last and key in METHODS and isinstance(target.get(key), str):
                target[key] = {"name": target[key]}
            if not last and key not in target:
                return path, f"no {_dotted(*path, key)} in this recipe"
        path = (*path, step)
        if last:
            target[step] = value
        else:
            target = target[step]
            if not isinstance(target, dict | list):
                return (
                    path,
                    f"{_dotted(*path)} is {reprlib.repr(target)}, nothing can be set inside it",
                )
    return path, ""


def _dotted(*path: str | int) -> str:
    return shown(".".join(map(str, path)))

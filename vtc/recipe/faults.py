"""Validation errors in the words of a recipe: which key, what is wrong with it, what to write instead."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic_core import ErrorDetails

from vtc.recipe.budget import Budget
from vtc.recipe.experts import ExpertPlacement
from vtc.recipe.selectors import DEFAULT_DECODER_SELECTOR
from vtc.recipe.stages import STAGES
from vtc.recipe.stages.base import METHODS, StageEntry
from vtc.recipe.values import Written
from vtc.recipe.yaml_lines import KeyPath

SECTIONS: Mapping[str, type[Written]] = {"budget": Budget, "experts": ExpertPlacement}
"""Keys of a recipe that hold keys of their own, beside its stages."""


def faults(
    errors: Sequence[ErrorDetails], data: Mapping[str, Any], top_keys: Sequence[str]
) -> Iterator[tuple[KeyPath, str]]:
    """Say what is wrong with a recipe.

    Parameters
    ----------
    errors
        What pydantic found.
    data
        The recipe as it was written.
    top_keys
        The keys that a recipe has outside its stages.

    Yields
    ------
    KeyPath, str
        The key as the user wrote it, and the fault.
    """
    found = [(_key_path(error["loc"], data), error) for error in errors]
    # "kep: unknown, did you mean keep?" already says that keep is missing.
    meant = {
        (*path[:-1], _closest(str(path[-1]), _valid_keys(path[:-1], data, top_keys)))
        for path, error in found
        if error["type"] == "extra_forbidden"
    }
    for path, error in found:
        if error["type"] == "missing" and path in meant:
            continue
        if error["type"] == "extra_forbidden":
            valid = _valid_keys(path[:-1], data, top_keys)
            yield path, f"unknown key, {_suggest(str(path[-1]), valid, 'valid here: ')}"
        elif error["type"] in ("union_tag_invalid", "union_tag_not_found"):
            yield _tag_path(path, data), _describe_tag(path, error, data)
        else:
            yield path, _describe(error)


def did_you_mean(word: str, valid: Sequence[str]) -> str:
    """Return ``did you mean 'keep'?``, or nothing when no valid word resembles `word`."""
    closest = _closest(word, valid)
    return f"did you mean '{closest}'?" if closest else ""


def _closest(word: str, valid: Sequence[str]) -> str:
    return next(iter(difflib.get_close_matches(word, valid, n=1, cutoff=0.5)), "")


def _suggest(word: str, valid: Sequence[str], otherwise: str) -> str:
    return did_you_mean(word, valid) or otherwise + ", ".join(valid)


def _key_path(location: tuple[int | str, ...], data: Any) -> KeyPath:
    """Drop from pydantic's location the tags of discriminated unions, which are no keys of the user's."""
    path: KeyPath = ()
    for step in location:
        tags = (data.get("kind"), data.get("name", DEFAULT_DECODER_SELECTOR)) if isinstance(data, dict) else (data,)
        if isinstance(data, dict | str) and step in tags and not (isinstance(data, dict) and step in data):
            continue
        path = (*path, step)
        if isinstance(data, dict):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            data = None
    return path


def _value_at(path: KeyPath, data: Any) -> Any:
    for step in path:
        data = data[step] if isinstance(data, list) and isinstance(step, int) else data.get(step, {})
    return data


def _tag_path(path: KeyPath, data: Any) -> KeyPath:
    """Return the key that names the kind of stage or the method, if it is written at all."""
    value = _value_at(path, data)
    tag = "name" if path[-1] in METHODS else "kind"
    return (*path, tag) if isinstance(value, dict) and tag in value else path


def _valid_keys(path: KeyPath, data: Any, top_keys: Sequence[str]) -> Sequence[str]:
    """Name the keys that the mapping at a path may have."""
    if not path:
        return top_keys
    if len(path) == 1:
        return list(SECTIONS[str(path[0])].model_fields)
    model: type[Written] = _stage_at(path, data)
    for depth in range(3, len(path) + 1):
        model = _model_inside(model, path[:depth], data)
    return list(model.model_fields)


def _stage_at(path: KeyPath, data: Any) -> type[StageEntry]:
    """Find the kind of the stage around a key."""
    return STAGES[_value_at(path[:2], data)["kind"]]


def _model_inside(model: type[Written], path: KeyPath, data: Any) -> type[Written]:
    """Find what describes the mapping under a key of a stage or a method."""
    if path[-1] in METHODS:
        stage = _stage_at(path, data)
        value = _value_at(path, data)
        name = value if isinstance(value, str) else value.get("name", stage.default_selector)
        return stage.methods(str(path[-1]))[name]
    annotation = model.model_fields[str(path[-1])].annotation
    found: type[Written] = next(part for part in (annotation, *get_args(annotation)) if _is_model(part))
    return found


def _is_model(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, Written)


def _describe_tag(path: KeyPath, error: ErrorDetails, data: Any) -> str:
    method = next((word for word in METHODS if word in path), "")
    noun, key, table = "stage kind", "kind", list(STAGES)
    if method:
        noun, key, table = method, "name", list(_stage_at(path, data).methods(method))
    if error["type"] == "union_tag_not_found":
        return f"names no {noun}, give {key}: one of {', '.join(table)}"
    return _unknown(noun, str(error.get("ctx", {}).get("tag", "")), table)


def _unknown(noun: str, name: str, table: Sequence[str]) -> str:
    return f"unknown {noun} {reprlib.repr(name)}, {_suggest(name, table, 'one of ')}"


_TYPES = {
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "bool_type": "true or false",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
}


def _describe(error: ErrorDetails) -> str:
    given = reprlib.repr(error["input"])
    context = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "required, and not given"
        case "literal_error":
            return f"is {str(context['expected']).replace(chr(39), '')}, not {given}"
        case "value_error":
            return str(context["error"])
        case "string_pattern_mismatch":
            return f"is at most 64 letters, digits, dots, dashes and underscores, not {given}"
        case kind if kind in _TYPES:
            return f"is {_TYPES[kind]}, not {given}"
        case _:
            message = error["msg"].removeprefix("Input ")
            return f"{message[0].lower()}{message[1:]}, not {given}"

"""A line of ``data.jsonl``: what it must hold, and where its image may lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

from vtc.data.lines import parse_object

MAX_NAME = 256
"""Characters of an id or a category."""

MAX_EDGE = 10**6
"""Largest coordinate of a box, in pixels."""

_outside: ContextVar[bool] = ContextVar("outside", default=False)


@contextmanager
def images_outside() -> Iterator[None]:
    """While the body runs, images of data sets may lie outside the data file's directory."""
    token = _outside.set(True)
    try:
        yield
    finally:
        _outside.reset(token)


def parse_record(line: bytes, directory: Path) -> dict[str, Any]:
    """What a line says, as the fields of :class:`vtc.data.datasets.Item`.

    Parameters
    ----------
    line : bytes
    directory : Path
        Of the data file: images' paths are relative to it, and lead to files in it.

    Raises
    ------
    ValueError
        If the line cannot be used, with a message that says why.
    """
    record = parse_object(line)
    name = _text(record, "image", "a path relative to the data file")
    answers = _field(record, "answers", list, "a list of strings")
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("field 'answers' must be a non-empty list of strings")
    if not any(answer.strip() for answer in answers):
        raise ValueError("field 'answers' holds no answer, only blanks")
    chance = record.get("chance")
    if chance is not None and (isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 <= chance <= 1):
        raise ValueError("field 'chance' must be a number between 0 and 1")
    return {
        "id": _named(record, "id"),
        "image": _image(directory, name),
        "image_id": os.path.normpath(name),
        "question": _asked(_text(record, "question", "a string")),
        "answers": tuple(answers),
        "category": _named(record, "category"),
        "evidence": _boxes(record.get("evidence")),
        "chance": None if chance is None else float(chance),
    }


def _field(record: dict[str, Any], name: str, kind: type | tuple[type, ...], wanted: str) -> Any:
    if name not in record:
        raise ValueError(f"missing field '{name}'")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"field '{name}' must be {wanted}")
    return value


def _text(record: dict[str, Any], name: str, wanted: str) -> str:
    return str(_field(record, name, str, wanted))


def _asked(question: str) -> str:
    if not question.strip():
        raise ValueError("field 'question' asks nothing")
    return question


def _named(record: dict[str, Any], name: str) -> str:
    kind = (str, int) if name == "id" else str
    value = str(_field(record, name, kind, "a string"))
    if not value.strip():
        raise ValueError(f"field '{name}' is blank")
    if len(value) > MAX_NAME:
        raise ValueError(f"field '{name}' has {len(value)} characters, more than {MAX_NAME}")
    return value


def _image(directory: Path, name: str) -> Path:
    path = directory / name
    shown = name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."
    try:
        there = path.is_file()
        inside = not there or _outside.get() or _lies_in(path, directory)
    except OSError as error:
        raise ValueError(f"image '{shown}' cannot be found ({error.strerror})") from None
    if not there:
        raise ValueError(f"image '{shown}' {_missing(path, name)}")
    if not inside:
        raise ValueError(
            f"image '{shown}' lies outside the data file's directory; copy it there, or give --images-outside "
            "if you trust the file"
        )
    return path


def _missing(path: Path, name: str) -> str:
    """Why there is no file at a path."""
    if "://" in name or name.startswith("data:"):
        return "is a URL, and nothing is fetched; download it first"
    if "\0" not in name and os.path.lexists(path):
        return "is a directory, a device, or a link that leads nowhere; give a file"
    return "does not exist"


def _lies_in(path: Path, directory: Path) -> bool:
    """Whether a file is in a directory, links followed."""
    real = path.resolve() if path.is_symlink() else _resolved(path.parent) / path.name
    return real.is_relative_to(_resolved(directory))


@lru_cache(maxsize=1024)
def _resolved(directory: Path) -> Path:
    return directory.resolve()


def _boxes(value: Any) -> tuple[tuple[float, float, float, float], ...]:
    if value is None:
        return ()
    boxes = []
    for box in value if isinstance(value, list) else [value]:
        if not isinstance(box, list) or len(box) != 4 or not all(_is_edge(edge) for edge in box):
            raise ValueError("field 'evidence' must be a list of boxes [x0, y0, x1, y1] in pixels")
        x0, y0, x1, y1 = map(float, box)
        if x1 < x0 or y1 < y0:
            raise ValueError("field 'evidence' holds a box that ends before it begins; give [x0, y0, x1, y1]")
        boxes.append((x0, y0, x1, y1))
    return tuple(boxes)


def _is_edge(edge: Any) -> bool:
    return isinstance(edge, int | float) and not isinstance(edge, bool) and abs(edge) <= MAX_EDGE

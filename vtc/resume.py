"""Notes for a rerun: what an interrupted command had finished, kept in its work directory.

Notes are versioned and sealed. What is damaged, or was written by another version, is thrown away with a line, and the
work is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from vtc.files import read_json
from vtc.replacement import flush

_log = logging.getLogger(__name__)

SCHEMA = 1
_MOST_BYTES = 64 * 2**20
Kind = TypeVar("Kind")


def write_notes(path: Path, notes: Any) -> None:
    """Write notes, JSON data, whole or not at all."""
    body = json.dumps(notes, sort_keys=True)
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(json.dumps({"schema": SCHEMA, "sha256": _digest(body), "notes": notes}), encoding="utf-8")
    flush(draft)
    os.replace(draft, path)


def read_notes(path: Path, kind: type[Kind]) -> Kind | None:
    """Notes of an interrupted run; None where there are none, or none that can be trusted (a warning is logged).

    Parameters
    ----------
    path : Path
    kind : type
        What the notes are, as pydantic knows it.
    """
    try:
        found = read_json(path, _MOST_BYTES)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise ValueError("of another version")
        if found.get("sha256") != _digest(json.dumps(found["notes"], sort_keys=True)):
            raise ValueError("changed")
        return TypeAdapter(kind).validate_python(found["notes"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError):  # pydantic's errors are ValueErrors
        _log.warning("%s: notes of an interrupted run are damaged; its work is done again", path)
        return None


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()

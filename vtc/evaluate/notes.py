"""Notes of a validation that is under way, so that the same command goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vtc.cache import cache_dir
from vtc.data.datasets import Item
from vtc.data.lines import parse_object, read_lines
from vtc.errors import InputError
from vtc.progress import Report, silent

VERSION = 2


def notes_of(key: Sequence[str], progress: Report = silent) -> Notes:
    """The notes in the user's cache directory of a validation whose answers depend on `key` and nothing else."""
    import vtc

    digest = hashlib.sha256(json.dumps([VERSION, vtc.__version__, *key]).encode()).hexdigest()
    notes = Notes(cache_dir() / "validations" / f"{digest[:32]}.jsonl", digest)
    if notes.damaged:
        progress(f"damaged notes of an interrupted run are left out ({notes.file})", 1, 1)
    if len(notes):
        progress(f"answers taken up from an interrupted run ({notes.file})", len(notes), len(notes))
    return notes


class Notes:
    """What came of items so far, in memory and in a file, one line each.

    A line is written as a whole, so that a process that is killed leaves whole lines and at most a part of the last
    one, which is left out when the file is read. Two processes with equal keys write equal notes.

    Parameters
    ----------
    file : Path or None
        None keeps nothing.
    key : str
        Digest of all that answers depend on. Notes under another one are of no use and thrown away.
    """

    def __init__(self, file: Path | None = None, key: str = "") -> None:
        self.file = file
        self._head = {"version": VERSION, "key": key}
        self._known: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}
        self.damaged = 0
        """Lines that cannot be read."""
        if file is not None and file.is_file():
            self._read(file)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, role: str, item: Item) -> dict[str, Any] | None:
        """What came of an item, if that is noted and its image has not been changed since."""
        stamp, note = self._known.get((role, item.id), (None, None))
        return note if note is not None and stamp == _stamp(item) else None

    def add(self, role: str, found: Sequence[tuple[Item, Mapping[str, Any]]]) -> None:
        """Note what came of items; where the file cannot be written, nothing is noted from then on."""
        if self.file is None or not found:
            return
        notes = [{"role": role, "id": item.id, "stamp": _stamp(item), "note": dict(note)} for item, note in found]
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = not self.file.exists()
            text = "".join(json.dumps(line) + "\n" for line in ([self._head] if new else []) + notes)
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
        except OSError:
            self.file = None

    def remove(self) -> None:
        """Throw the notes away: the validation is finished."""
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink(missing_ok=True)

    def _read(self, file: Path) -> None:
        head = None
        try:
            for number, line in read_lines(file):
                try:
                    record = parse_object(line)
                    if number == 1:
                        head = record
                        continue
                    self._known[record["role"], record["id"]] = record["stamp"], dict(record["note"])
                except (ValueError, KeyError, TypeError):
                    self.damaged += 1
        except InputError:
            self.damaged += 1
        if head != self._head:
            self.damaged, self._known = max(self.damaged, 1), {}
        if self.damaged:
            self._write_again(file)

    def _write_again(self, file: Path) -> None:
        """Write what can be read of a damaged file; a part of a line would spoil the next one."""
        notes = [
            {"role": role, "id": item, "stamp": stamp, "note": note}
            for (role, item), (stamp, note) in self._known.items()
        ]
        try:
            fresh = file.with_name(f".{file.name}.{os.getpid()}")
            fresh.write_text("".join(json.dumps(line) + "\n" for line in [self._head, *notes]), encoding="utf-8")
            fresh.replace(file)
        except OSError:
            self.file = None


def _stamp(item: Item) -> list[int]:
    """Size and time of an item's image file, by which a changed one is told."""
    if not isinstance(item.image, Path):
        return []
    try:
        status = item.image.stat()
    except OSError:
        return [-1]
    return [status.st_size, status.st_mtime_ns]

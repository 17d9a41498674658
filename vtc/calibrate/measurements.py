"""Numbers that calibration has measured, kept as they are made, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtc.resume import read_notes, write_notes


class Measurements:
    """Numbers by name, written to a file as they are made.

    Parameters
    ----------
    path : Path or None
        None keeps them in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        if path is not None:
            self.values = read_notes(path, dict[str, Any]) or {}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value under `name`, measured now if it is not there yet. Values are JSON data."""
        if name not in self.values:
            self.values[name] = measure()
            if self.path is not None:
                write_notes(self.path, self.values)
        return self.values[name]

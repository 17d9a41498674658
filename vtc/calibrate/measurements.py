"""Numbers that calibration has measured, kept as they are made, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Measurements:
    """Numbers by name, written to a JSON file as they are made.

    Parameters
    ----------
    path : Path or None
        None keeps them in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        if path is not None and path.is_file():
            self.values = json.loads(path.read_text(encoding="utf-8"))

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value under `name`, measured now if it is not there yet. Values are JSON data."""
        if name not in self.values:
            self.values[name] = measure()
            if self.path is not None:
                draft = self.path.with_suffix(".tmp")
                draft.write_text(json.dumps(self.values, indent=1), encoding="utf-8")
                os.replace(draft, self.path)
        return self.values[name]

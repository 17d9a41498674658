"""Changes to the files of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]


def edit(name: str, **changes: Any) -> Change:
    def change(path: Path) -> None:
        file = path / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def edit_part(part: str, **changes: Any) -> Change:
    def change(path: Path) -> None:
        file = path / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {part: config[part] | changes}))

    return change


def write(name: str, text: str) -> Change:
    return lambda path: (path / name).write_text(text)

"""The log of a training run as a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from vtc.training.state import Row


def write_log(path: Path, log: Sequence[Row], fields: Sequence[str]) -> None:
    """Write a run's log, whole or not at all; values outside `fields` are left out."""
    draft = path.with_suffix(".tmp")
    with draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(value, 6) for name, value in row.items()} for row in log)
    os.replace(draft, path)

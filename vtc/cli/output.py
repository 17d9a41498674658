"""What verbs print: JSON, or tables that look good on a terminal and stay plain in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from vtc.shown import shown, tamed

CELL = 400
"""Letters that are shown of a cell."""


def say(text: str, *, newline: bool = True) -> None:
    """Write text to stdout, for people; what it quotes cannot rule the terminal."""
    click.echo(tamed(text), nl=newline)


def note(text: str) -> None:
    """Write a line to stderr, for people; what it quotes cannot rule the terminal."""
    click.echo(tamed(text), err=True)


def print_json(data: Any) -> None:
    """Print data as JSON."""
    click.echo(json.dumps(data, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table to stdout.

    Parameters
    ----------
    columns
        Headings; one that starts with ``>`` has its column aligned to the right.
    rows
        Cells, as many as there are columns.
    title
        A line above it.
    """
    right = [column.startswith(">") for column in columns]
    headings = [shown(column.removeprefix(">")) for column in columns]
    rows = [[shown(cell, CELL) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(headings, right, rows, title)
        return
    # In a pipe: aligned by spaces, never cut or wrapped.
    lines = [headings, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(headings))]
    if title:
        say(title)
    for line in lines:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ]
        say("  ".join(cells).rstrip())


def _print_rich(headings: Sequence[str], right: Sequence[bool], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(shown(title, CELL)) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, is_right in zip(headings, right, strict=True):
        table.add_column(escape(heading), justify="right" if is_right else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(emoji=False).print(table)


def with_unit(value: float, unit: str = "") -> str:
    """Write a number with three digits and a decimal prefix: 2787199360 with unit B is ``2.79 GB``."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or prefix == "T":
            break
        value /= 1000
    digits = f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    return f"{digits} {prefix}{unit}".rstrip()

"""Progress on stderr, with the time that is left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from vtc.amounts import duration
from vtc.shown import shown

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_LINE_EVERY_S = 10.0


@contextmanager
def progress(stream: TextIO | None = None) -> Iterator[Report]:
    """Show progress while the body runs.

    Parameters
    ----------
    stream : text stream or None
        None means stderr.

    Yields
    ------
    callable
        To be called with a label, the amount done and the amount in all.
    """
    out = sys.stderr if stream is None else stream
    if not out.isatty():
        yield _plain(out)
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(file=out, emoji=False), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(label: str, done: int, total: int) -> None:
            label = shown(label)
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done, total=total, visible=done < total)

        yield show


def _plain(out: TextIO) -> Report:
    last = time.monotonic()
    begun: dict[str, tuple[float, int]] = {}

    def show(label: str, done: int, total: int) -> None:
        nonlocal last
        now, work = time.monotonic(), label.partition(" (")[0]  # figures in brackets change on the way
        if work not in begun or done <= begun[work][1]:
            begun[work] = now, done
        # Logs want a line when something is finished, and a sign of life in between.
        if done >= total or now - last >= _LINE_EVERY_S:
            last = now
            since, at = begun[work]
            left = duration((now - since) / (done - at) * (total - done)) if at < done < total else ""
            print(f"{shown(label)} {done}/{total}{left and f', about {left} left'}", file=out, flush=True)

    return show


def silent(_label: str, _done: int, _total: int) -> None:
    """Report nothing."""

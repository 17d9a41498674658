"""Keeps libraries' own notes away from the user: an error is one line, with nothing before it."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from vtc.cli.output import note
from vtc.shown import line


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drop logs and warnings of libraries while the body runs; vtc's own warnings become a line each.

    ``vtc --debug`` and Python's own ``-W`` show them all.
    """
    if sys.warnoptions:
        yield
        return
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"(vtc|exporters)\b")
        warnings.showwarning = _show
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _show(message: Warning | str, *_: Any) -> None:
    note(line(f"note: {message}"))

"""Keeps libraries' own notes away from the user: an error is one line, with nothing before it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from vtc.cli.output import note
from vtc.shown import line

OWN = ("vtc", "exporters")
"""Packages whose warnings are for the user."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drop logs and warnings of libraries while the body runs; those of vtc's own become a line each.

    ``vtc --debug`` shows them all, and Python's own ``-W`` what it asks for.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when PyTorch is imported
    all_handlers = logging.Logger.callHandlers
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=rf"({'|'.join(OWN)})\b")
        warnings.showwarning = _show
        # Libraries log through handlers of their own, so what all loggers have in common is changed.
        logging.Logger.callHandlers = _log  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            logging.Logger.callHandlers = all_handlers  # type: ignore[method-assign]


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    _note(str(message))


def _log(logger: logging.Logger, record: logging.LogRecord) -> None:
    if logger.name.partition(".")[0] in OWN and record.levelno >= logging.WARNING:
        _note(record.getMessage())


def _note(message: str) -> None:
    note(line(f"note: {message.removeprefix('note: ')}"))

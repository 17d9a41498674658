"""Options that say what runs a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vtc.runtime import BACKENDS

Command = TypeVar("Command", bound=Callable[..., Any])


def backend_options(*others: str, note: str = "") -> Callable[[Command], Command]:
    """Options ``--backend`` and ``--engines``.

    Parameters
    ----------
    others : str
        Backends that the command knows beside those of bundles.
    note : str
        Said of them in the help.
    """

    def decorate(command: Command) -> Command:
        for option in (
            click.option(
                "--engines",
                type=click.Path(file_okay=False, path_type=Path),
                help="Engines for --backend tensorrt.  [default: those in the bundle that fit this machine]",
            ),
            click.option(
                "--backend",
                type=click.Choice([*BACKENDS, *others]),
                help=f"What runs it: graphs in ONNX Runtime, or the engines of vtc build{note}.  "
                f"[default: {BACKENDS[0]}]",
            ),
        ):
            command = option(command)
        return command

    return decorate

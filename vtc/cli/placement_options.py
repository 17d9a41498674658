"""Options that say where PyTorch runs a model, of every verb that loads a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vtc.facts.placement import DEVICES, DTYPES, ON_CPU


def placement_flags(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add ``--device`` and ``--dtype``, which the command gets as strings of those names.

    Parameters
    ----------
    what : str
        What they are of, for the help.
    """
    device = click.option(
        "--device",
        type=click.Choice(DEVICES),
        default=ON_CPU.device,
        show_default=True,
        help=f"Where PyTorch runs {what}; auto: on the GPU where there is one, and what it has no room for is fetched "
        "from memory or from the disk as it runs.",
    )
    dtype = click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default=ON_CPU.dtype,
        show_default=True,
        help="Type of its weights; auto: that of the checkpoint.",
    )
    return lambda command: device(dtype(command))

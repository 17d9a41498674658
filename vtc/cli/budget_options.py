"""Options that say which of several budgets of visual tokens is meant, of every verb whose model may have several."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from vtc.errors import InputError

Callback = Callable[..., Any]


def keep_option(default: str) -> Callable[[Callback], Callback]:
    """Add ``--keep``.

    Parameters
    ----------
    default : str
        What is taken without it, for the help.
    """
    return click.option(
        "--keep",
        type=int,
        metavar="K",
        help=f"Which of its budgets of visual tokens, where it has several.  [default: {default}]",
    )


def keep_flags(default: str) -> Callable[[Callback], Callback]:
    """Add ``--keep`` and ``--entropy``, of which one may be given.

    The command gets one argument for both, `keep`: a budget, an Entropy or None.

    Parameters
    ----------
    default : str
        As for :func:`keep_option`.
    """

    def decorate(command: Callback) -> Callback:
        @wraps(command)
        def collecting(*, keep: int | None, entropy: float | None, **given: Any) -> Any:
            if entropy is None:
                return command(keep=keep, **given)
            if keep is not None:
                raise InputError(
                    "--keep says which budget, and --entropy lets the answer choose one; give one of the two"
                )
            from vtc.runtime.budgets import Entropy

            return command(keep=Entropy(entropy), **given)

        threshold = click.option(
            "--entropy",
            type=click.FloatRange(min=0),
            metavar="NATS",
            help="Ask at the smallest budget, and at the next while the first token's entropy is above this.",
        )
        return keep_option(default)(threshold(collecting))

    return decorate

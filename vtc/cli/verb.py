"""What all verbs have in common: options under their former names, options given twice, the verb to go on with."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from vtc.cli.output import note
from vtc.shown import line

MOST = 2**31 - 1
"""Largest number that an option takes: libraries take no larger ones, nor infinity and NaN."""

MOST_SEED = 2**63 - 1

FORMER_NAMES: dict[str, dict[str, str]] = {
    "bench": {"--output": "--out", "--new-tokens": "--max-new-tokens"},
    "show": {"--output": "--out"},
    "validate": {"--output": "--out", "--limit": "--samples"},
}
"""Verb → former name of an option → its name. Former names are accepted until vtc 0.3."""


class Verb(click.Command):
    """A verb: takes options under their former names too, and refuses one that is given twice in vain."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments after the verb."""
        args = [_renamed(arg, FORMER_NAMES.get(ctx.info_name or "", {})) for arg in args]
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option, times in Counter(option for option in given if _single(option)).items():
            if times > 1:
                raise click.UsageError(f"{option.opts[-1]} is given {times} times, and can be given once", ctx)
        rest = super().parse_args(ctx, args)
        for option in self.params:
            value = ctx.params.get(option.name or "")
            if isinstance(value, int | float) and not abs(value) <= (MOST_SEED if option.name == "seed" else MOST):
                raise click.BadParameter(f"{value:g} is no number that can be used", ctx, option)
        return rest


def _renamed(arg: str, names: Mapping[str, str]) -> str:
    former, equals, value = arg.partition("=")
    if former not in names:
        return arg
    note(f"note: {former} is called {names[former]} now; the former name goes with vtc 0.3")
    return f"{names[former]}{equals}{value}"


def separated(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> list[str]:
    """Take the names of an option that may be repeated and have several with commas."""
    return [name for one in given for name in one.split(",")]


def _single(option: click.Parameter) -> bool:
    return isinstance(option, click.Option) and not (option.multiple or option.is_flag or option.count)


def verb(short_help: str, **settings: Any) -> Callable[[Callable[..., Any]], Verb]:
    """Make a verb of a function.

    Parameters
    ----------
    short_help : str
    settings
        As for `click.command`.
    """
    return click.command(cls=Verb, short_help=short_help, **settings)


def suggest(*words: str | Path) -> None:
    """Name the verb to go on with, on stderr.

    Parameters
    ----------
    words : str or Path
        The command after ``vtc``.
    """
    spelt = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    note(line(f"next: vtc {shlex.join(spelt)}"))


def tell_warnings(directory: str | Path) -> None:
    """Repeat what an artifact's own manifest warns of, on stderr; other directories have nothing to say."""
    from vtc.compressed.inspection import warnings_of

    for text in warnings_of(Path(directory)):
        note(line(f"warning: {text}"))

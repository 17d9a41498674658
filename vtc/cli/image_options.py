"""Options that say what images a model is to be made ready for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

from vtc.facts.layout import ANY_IMAGE, Grid, ImageOptions

Callback = Callable[..., Any]


class Size(click.ParamType[Grid]):
    """Two numbers with an x between them.

    Parameters
    ----------
    example : str
    turned : bool
        Whether columns come first, as in the name of a screen's resolution.
    """

    name = "size"

    def __init__(self, example: str, *, turned: bool) -> None:
        self.example = example
        self.turned = turned

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Grid:
        """Read rows and columns."""
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(value))
        if found is None:
            self.fail(f"'{value}' is not of the form {self.example}", param, ctx)
        first, second = int(found[1]), int(found[2])
        return (second, first) if self.turned else (first, second)


def image_option_flags(*, several: bool = False) -> Callable[[Callback], Callback]:
    """Add ``--image-size``, ``--tiles`` and ``--frames``.

    The command gets one argument for all of them, `image_options`: an ImageOptions, or where `several`, a list of one
    for each layout that was named, the first two options being accepted more than once.
    """
    more = " Give it again for another layout in the same bundle." if several else ""
    flags = (
        click.option(
            "--image-size",
            multiple=several,
            type=Size("1280x720", turned=True),
            metavar="WIDTHxHEIGHT",
            help=f"Pixels of the images to serve; others are fitted in.  [default: the family's own]{more}",
        ),
        click.option(
            "--tiles",
            multiple=several,
            type=Size("2x3", turned=False),
            metavar="ROWSxCOLUMNS",
            help=f"Tiles that images are cut into, for families that do.{more}",
        ),
        click.option(
            "--frames", default=1, type=click.IntRange(1), help="Serve clips of so many frames.  [default: images]"
        ),
    )
    read = _layouts if several else ImageOptions

    def decorate(command: Callback) -> Callback:
        @wraps(command)
        def collecting(*, image_size: Any, tiles: Any, frames: int, **given: Any) -> Any:
            return command(image_options=read(image_size, tiles, frames), **given)

        for flag in reversed(flags):
            collecting = flag(collecting)
        return collecting

    return decorate


def _layouts(image_sizes: Sequence[Grid], tiles: Sequence[Grid], frames: int) -> list[ImageOptions]:
    """List what the options ask for, one for each layout; none where they were not given."""
    named = [ImageOptions(image_size=size, frames=frames) for size in image_sizes]
    named += [ImageOptions(tiles=grid, frames=frames) for grid in tiles]
    unnamed = ImageOptions(frames=frames)
    return named or ([] if unnamed == ANY_IMAGE else [unnamed])

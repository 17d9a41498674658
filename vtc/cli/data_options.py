"""An option of every verb that reads a data set."""

from __future__ import annotations

import click

from vtc.data.records import images_outside


def _allow(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.with_resource(images_outside())


images_outside_flag = click.option(
    "--images-outside",
    is_flag=True,
    expose_value=False,
    callback=_allow,
    help="Images that --data names may lie outside its directory.",
)
"""Add ``--images-outside``, which holds while the command runs; the command gets no argument for it."""

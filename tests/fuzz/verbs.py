"""Verbs that the worker adds to ``vtc``: each calls one function that verbs call too, without the work around it.

They stand in the table of verbs, so that their errors pass the same boundary as those of ``vtc run`` do.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

FILE = click.argument("path", type=click.Path(path_type=Path))


def add() -> None:
    """Put the verbs into vtc's table."""
    from vtc.cli import VERBS

    for name in ("open_image", "read_data", "chat", "load_compressed"):
        VERBS[name] = ("tests.fuzz.verbs", name, "")


def warm() -> None:
    """Import what commands about checkpoints import, so that the first one takes no longer than the others."""
    import transformers  # noqa: F401

    import vtc.calibrate.compress
    import vtc.compressed.checkpoint
    import vtc.models.llava  # noqa: F401


@click.command()
@FILE
def open_image(path: Path) -> None:
    """Open an image as ``vtc run --image`` does."""
    import numpy as np

    from vtc.runtime.image import open_image as opened

    image = opened(path)
    pixels = np.asarray(image.convert("L"))
    report = {"mode": image.mode, "size": image.size, "mean": float(pixels.mean()), "levels": len(np.unique(pixels))}
    click.echo(json.dumps(report))


@click.command()
@FILE
def read_data(path: Path) -> None:
    """Read data as ``vtc validate --data`` does, and open every image."""
    from vtc.data.datasets import load_dataset

    data = load_dataset(path, None, 0)
    for item in data.items:
        item.load()
    click.echo(json.dumps({"questions": [item.question for item in data.items], "categories": data.categories}))


@click.command()
@FILE
def chat(path: Path) -> None:
    """Write the prompt of a question as ``vtc run`` does."""
    from vtc.bundle.manifest import load_manifest
    from vtc.runtime.text import Text

    manifest = load_manifest(path)
    click.echo(Text(manifest).chat("what is the colour ?", 1, manifest.images[0]))


@click.command()
@FILE
def load_compressed(path: Path) -> None:
    """Load a compressed model as ``vtc export`` does."""
    from vtc.compressed.checkpoint import load_compressed as loaded

    _, recipe, _ = loaded(path)
    click.echo(json.dumps({"digest": recipe.digest}))

"""Options that say what runs a bundle, of every verb that runs one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from vtc.runtime.options import BACKENDS, RuntimeOptions

Callback = Callable[..., Any]


def runtime_flags(*others: str, note: str = "") -> Callable[[Callback], Callback]:
    """Add ``--backend``, ``--engines``, ``--provider``, ``--precision``, ``--threads`` and ``--spin``.

    The command gets one argument for all of them, `runtime`, which is a RuntimeOptions.

    Parameters
    ----------
    others : str
        Backends that the command knows beside those of bundles.
    note : str
        What the help says of them.
    """
    flags = (
        click.option(
            "--backend",
            type=click.Choice([*BACKENDS, *others]),
            default=BACKENDS[0],
            show_default=True,
            help=f"What runs it: graphs in ONNX Runtime or OpenVINO, or the engines of vtc build{note}.",
        ),
        click.option(
            "--engines",
            type=click.Path(file_okay=False, path_type=Path),
            help="Engines for --backend tensorrt.  [default: those in the bundle that fit this machine]",
        ),
        click.option(
            "--provider",
            help="ONNX Runtime provider, such as cpu or cuda, or OpenVINO device, such as cpu or gpu.  "
            "[default: the fastest that works here; cpu in OpenVINO]",
        ),
        click.option(
            "--precision",
            help="Which of a bundle's precisions or variants to run, such as fp16, q4-ort or q4-portable; in "
            "OpenVINO also bf16, q4-bf16 and int8-bf16.  [default: float16 on a GPU, else float32, in the form that is "
            "fastest here]",
        ),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one operator."),
        click.option(
            "--spin",
            is_flag=True,
            help="Let CPU threads wait busily: faster on a machine of vtc's own, far slower on a busy one.",
        ),
    )

    def decorate(command: Callback) -> Callback:
        @wraps(command)
        def collecting(
            *,
            backend: str,
            engines: Path | None,
            provider: str | None,
            precision: str | None,
            threads: int | None,
            spin: bool,
            **given: Any,
        ) -> Any:
            return command(runtime=RuntimeOptions(backend, provider, precision, threads, engines, spin=spin), **given)

        for flag in reversed(flags):
            collecting = flag(collecting)
        return collecting

    return decorate

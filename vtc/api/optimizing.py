"""``vtc.optimize``: optimised variants for a bundle that exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vtc.api.arguments import as_list
from vtc.progress import Report, silent

if TYPE_CHECKING:
    from exporters.optimising import Agreement


def optimize(
    bundle: str | Path,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    variants: str | Sequence[str] = (),
    out: str | Path | None = None,
    data: str | Path | None = None,
    samples: int = 8,
    progress: Report = silent,
) -> dict[str, Agreement]:
    """Add optimised variants to a bundle, once they compute what its portable graphs compute.

    Parameters
    ----------
    bundle : str or Path
    device : {"cpu", "cuda"}
        What it is to run on.
    variants : str or sequence of str
        Which variants, such as ``q4-ort``; none takes those that suit the device.
    out : str, Path or None
        Directory to write; None replaces the bundle.
    data : str, Path or None
        Images and questions to compare on: a directory with data.jsonl, or ``reference``. None makes noise.
    samples : int
        Number of prompts to compare on.
    progress : callable
        As for :func:`compress`.

    Returns
    -------
    dict of variant to Agreement

    Raises
    ------
    InputError
        If the bundle lacks the precision of a variant, or nothing of it can be rewritten.
    BundleError
        If the bundle is incomplete or changed, or `out` holds something else.
    ParityError
        If a variant computes something else than the portable graphs. Nothing is written then.

    Examples
    --------
    >>> import vtc
    >>> found = vtc.optimize("out/bundle", device="cpu", samples=2)
    >>> found["fp32-ort"].greedy_match
    1.0
    """
    from exporters.optimising import optimise_bundle, variants_for
    from vtc.bundle.manifest import load_manifest

    manifest = load_manifest(bundle)
    names = as_list(variants) or variants_for(manifest, device)
    return optimise_bundle(manifest, names, Path(bundle if out is None else out), data, samples, progress)

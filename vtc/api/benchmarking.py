"""``vtc.bench``: speed and memory beside the original."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.progress import Report, silent
from vtc.runtime.options import RuntimeOptions

if TYPE_CHECKING:
    from vtc.runtime.image import ImageLike


def bench(
    bundle: str | Path,
    *,
    against: str | Path | None = None,
    images: Sequence[ImageLike] = (),
    prompt: str | None = None,
    max_new_tokens: int = 32,
    repeats: int = 50,
    warmup: int = 3,
    memory: bool = True,
    keep: int | None = None,
    runtime: RuntimeOptions = RuntimeOptions(),
    progress: Report = silent,
) -> dict[str, Any]:
    """Time a bundle and the original in turn, in one run, and measure each one's peak memory.

    A bundle of several budgets of visual tokens is timed at each of them.

    Parameters
    ----------
    bundle : str or Path
    against : str, Path or None
        The original: ``reference``, a checkpoint's directory, or a bundle. A checkpoint is exported as it is, and that
        export is kept in the user's cache directory. None times the bundle alone.
    images : sequence of path, PIL image, array, bytes or file object
        Images of one question; without any, questions about scenes of the reference model are asked.
    prompt : str or None
        The question about `images`.
    max_new_tokens : int
        Length of every answer: end tokens are ignored, so that all are of the same length.
    repeats, warmup : int
        Rounds that count, and rounds before them that do not.
    memory : bool
        Whether peak memory is measured, each model in a process of its own.
    keep : int or None
        The one budget to time.
    runtime : RuntimeOptions
        How the bundle is run; the original runs in the same precision, on engines of its own.
    progress : callable
        As for :func:`compress`.

    Returns
    -------
    dict
        The report of :func:`vtc.benchmark.side_by_side.bench_bundle`, ready for JSON.

    Raises
    ------
    InputError
        If something is missing, there is no such budget, or the bundle was made from another checkpoint.

    Examples
    --------
    >>> import vtc
    >>> report = vtc.bench("out/bundle", repeats=3, max_new_tokens=4, memory=False)
    >>> report["runs"][0]["visual_tokens"]
    64
    """
    from vtc.benchmark.report import Rounds
    from vtc.benchmark.side_by_side import bench_bundle, bench_prompts

    rounds = Rounds(repeats, warmup, max_new_tokens, memory)
    origin = None if against is None else str(against)
    return bench_bundle(Path(bundle), origin, bench_prompts(images, prompt), rounds, runtime, progress, keep)

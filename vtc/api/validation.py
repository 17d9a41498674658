"""``vtc.validate``: accuracy and fidelity beside the original."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.api.arguments import as_placement
from vtc.evaluate.baselines import BASELINES
from vtc.facts.placement import ON_CPU, Device, Dtype
from vtc.progress import Report, silent
from vtc.runtime.options import RuntimeOptions

if TYPE_CHECKING:
    from vtc.evaluate.validate import Thresholds
    from vtc.runtime.budgets import Keep


def validate(
    target: str | Path | None,
    *,
    against: str | Path | None = None,
    data: str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    baselines: Sequence[str] = BASELINES,
    thresholds: Thresholds | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    max_skipped: float = 0.1,
    runtime: RuntimeOptions = RuntimeOptions(),
    device: Device = "cpu",
    dtype: Dtype = "float32",
    keep: Keep = None,
    progress: Report = silent,
) -> dict[str, Any]:
    """Judge a bundle or a compressed model against the original, on the same questions.

    Parameters
    ----------
    target : str, Path or None
        The bundle or compressed model; None measures the original alone.
    against : str, Path or None
        The original: ``reference``, a checkpoint's directory, or an uncompressed bundle. None takes the checkpoint that
        the target was made from, where it still is.
    data : str, Path or None
        Questions: a directory with data.jsonl, or ``reference``. None takes ``reference`` for the reference model.
    samples : int or None
        Number of questions; None takes all of a directory, and 600 of ``reference``.
    seed : int
        Draws the questions and resamples.
    baselines : sequence of str
        Some of :data:`vtc.evaluate.baselines.BASELINES`; there are none against a bundle.
    thresholds : Thresholds or None
        What the gate asks for; None asks for a retention of 95 %.
    batch_size : int
        Questions at a time.
    max_new_tokens : int
        Longest answer.
    max_skipped : float
        Share of the questions that may be left out because they cannot be asked (an image that is damaged, a prompt
        that is too long), at least one of them unless it is 0. The report names them.
    runtime : RuntimeOptions
        How a bundle is run.
    device : {"cpu", "cuda", "auto"}
        Where the original, its baselines and a compressed model run, as for :func:`compress`.
    dtype : {"float32", "bfloat16", "float16", "auto"}
        Type of their weights.
    keep : int, Entropy or None
        Of a target with several budgets of visual tokens, the one to judge, or the policy that chooses, which is asked
        one question at a time, beside each budget that it chooses from. None judges each budget.
    progress : callable
        As for :func:`compress`.

    Returns
    -------
    dict
        The report of :func:`vtc.evaluate.validate.validate`, ready for JSON. ``report["gate"]["status"]`` is ``pass``,
        ``fail`` or ``inconclusive``; a failed gate raises nothing. Where each of several budgets is judged, it is that
        of :func:`vtc.evaluate.validate.validate_budgets`. Answers are noted in the user's cache directory
        until the report is done, so that the same call goes on after an interruption.

    Raises
    ------
    InputError
        If something is missing, of the wrong kind, or made from another checkpoint, if there is no such budget, or if
        more questions cannot be asked than may be left out.

    Examples
    --------
    >>> import vtc
    >>> report = vtc.validate("out/bundle", samples=60, baselines=["random"])
    >>> report["results"]["bundle"]["retention"] > report["baselines"]["random"]["retention"]
    True
    >>> report["gate"]["status"]
    'inconclusive'
    """
    from vtc.data.datasets import load_dataset, needed_data
    from vtc.evaluate.asking import Effort
    from vtc.evaluate.comparison import checkpoint_name, open_comparison
    from vtc.evaluate.notes import notes_of
    from vtc.evaluate.validate import Thresholds, validate_budgets
    from vtc.evaluate.validate import validate as run

    named = None if target is None else str(target)
    origin = None if against is None else str(against)
    data = data if data is not None else needed_data(checkpoint_name(named, origin))
    dataset = load_dataset(data, samples, seed)
    placement = as_placement(device, dtype)
    effort = Effort(batch_size, max_new_tokens)
    field = open_comparison(named, origin, baselines, seed, runtime, placement, keep, effort)
    key = [field.sha256, dataset.sha256, str(seed), repr(runtime), str(max_new_tokens), *sorted(baselines)]
    key += [] if placement == ON_CPU else [repr(placement)]
    key += [] if keep is None else [repr(keep)]
    notes = notes_of(key, progress)
    how: dict[str, Any] = {
        "limits": thresholds or Thresholds(),
        "seed": seed,
        "effort": effort,
        "progress": progress,
        "max_skipped": max_skipped,
        "notes": notes,
    }
    if field.budgets:
        report = validate_budgets(field.original, field.budgets, dataset, **how)
    else:
        models = field.original, field.compressed, field.baselines
        report = run(*models, dataset, left_out=field.left_out, **how)
    notes.remove()
    return report

"""Whether a training learned anything, by its log."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vtc.errors import InputError
from vtc.training.state import Row

WARNING = "warning"
"""What a trained part's file calls it."""


def check_finite(row: Row, noun: str) -> None:
    """Refuse a training that diverged.

    Raises
    ------
    InputError
        If a number of the log's row is none.
    """
    for name, value in row.items():
        if not math.isfinite(value):
            raise InputError(
                f"training of the {noun} diverged: {name.replace('_', ' ')} is {value}; lower learning_rate of its "
                "training in the recipe, or check the data and the checkpoint's weights"
            )


def learned_nothing(
    log: Sequence[Row],
    noun: str,
    loss: str,
    measure: str,
    untrained: float,
    *,
    higher_is_better: bool = False,
    best: float | None = None,
) -> str | None:
    """What to warn of.

    Parameters
    ----------
    log : sequence of rows
        In the order of steps, at least one.
    noun : str
        What was trained.
    loss, measure : str
        Columns of the log: what was minimised, and what held-out data came to.
    untrained : float
        The measure before any step.
    higher_is_better : bool
        Of the measure.
    best : float or None
        The measure of the model with all visual tokens, where 0 means that it can tell nothing.

    Returns
    -------
    str or None
        One line; None where the loss fell and held-out data say that something was learned.
    """
    first, last = log[0], log[-1]
    faults = []
    if last[loss] > first[loss]:
        faults.append(f"its loss rose from {first[loss]:.4g} to {last[loss]:.4g}")
    name = measure.replace("_", " ")
    gained = last[measure] - untrained if higher_is_better else untrained - last[measure]
    if best == 0:
        faults.append(
            f"{name} tells nothing, since the model answers no held-out question as the data do even unpruned"
        )
    elif not gained > 0:
        faults.append(f"{name} is {last[measure]:.4g} and was {untrained:.4g} untrained")
    if not faults:
        return None
    return (
        f"the {noun} may have learned nothing: {', and '.join(faults)}; give more or other --data, more steps or "
        "another learning_rate, and judge the model by vtc validate before it is used"
    )

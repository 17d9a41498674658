"""What is judged of a model with several budgets: each of them, or a policy that chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vtc.evaluate.answers import Contestant, Trial
from vtc.evaluate.one_by_one import OneByOne
from vtc.runtime.budgets import Entropy

if TYPE_CHECKING:
    from vtc.evaluate.contestants import Opened

Rivals = Callable[[Sequence[str], Sequence[int | None]], tuple[list[Contestant], dict[str, str]]]
"""From names of baselines and the budget of each layout to those that can be, and why others cannot."""


def of_each_budget(model: Opened, names: Sequence[str], rivals: Rivals) -> dict[int, Trial]:
    """Try the model at each of its budgets, with baselines; that which sees no image is the same one for all.

    Parameters
    ----------
    model : Opened
    names : sequence of str
        Of :data:`vtc.evaluate.baselines.BASELINES`.
    rivals : callable
    """
    blind, _ = rivals(_only_blind(names), ())
    trials = {}
    for keep, at in model.budgets.items():
        found, left_out = rivals([name for name in names if name != "blind"], at.keeps)
        trials[keep] = Trial(at.contestant, [*found, *blind], left_out)
    return trials


def of_policy(model: Opened, policy: Entropy, names: Sequence[str], rivals: Rivals) -> Trial:
    """Try a policy, beside each budget that it chooses from: what it has to beat, in the place of other baselines.

    Parameters are those of :func:`of_each_budget`.
    """
    tried = policy.of(tuple(model.budgets))
    fixed = [_one_by_one(model, f"keep {keep}", keep) for keep in tried if set(names) - {"blind"}]
    blind, left_out = rivals(_only_blind(names), ())
    named = f"{model.contestant.name} by entropy {policy.threshold:g}"
    return Trial(_one_by_one(model, named, policy), [*fixed, *blind], left_out)


def _only_blind(names: Sequence[str]) -> list[str]:
    return [name for name in names if name == "blind"]


def _one_by_one(model: Opened, name: str, keep: int | Entropy) -> Contestant:
    assert model.elastic is not None  # what has budgets answers at them
    asked = OneByOne(model.elastic, keep)
    return replace(model.contestant, name=name, predictor=asked, locator=None, layer_average=None)

"""How a recipe's budget is spent: visual tokens for each pruning stage from one layer average and one ratio.

With L layers in the model, w_i of them seeing what stage i keeps, and each stage keeping `ratio` times as many tokens
as the next, the last one keeps ``(average * L - fixed) / sum_i w_i * ratio^(m - i)``, where `fixed` are the tokens of
layers before the first cut of a recipe without a `prune` stage. Rounding never exceeds the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from vtc.facts.model import ModelFacts
from vtc.plan.depth import DecoderDepth
from vtc.plan.faults import Faults
from vtc.recipe import Recipe


def budget_keeps(recipe: Recipe, facts: ModelFacts, depth: DecoderDepth, faults: Faults) -> dict[int, int]:
    """Tokens that each pruning stage keeps, of one run of placeholders, under the recipe's budget.

    Parameters
    ----------
    recipe, facts, depth
        What to do to which model, and which of its decoder layers see the image.
    faults
        Receives what cannot be.

    Returns
    -------
    dict
        Stage number to tokens; empty for a recipe without a budget.
    """
    budget = recipe.budget
    spending = [(number, stage) for number, stage in enumerate(recipe.stages) if stage.spends_budget]
    prunes = [number for number, stage in spending if stage.place.makes_tokens]
    steps = [*prunes, *depth.cuts.values()]
    if budget is None or not steps:
        return {}
    total, layout = facts.decoder.layers, facts.layout
    whole = layout.selectable if prunes else layout.tokens
    given = budget.keep_average
    average = given * whole if isinstance(given, float) else given / layout.spans
    seeing = [layer for layer in depth.kept if depth.sees_image(layer)]
    starts = [*depth.cuts, total]
    weights = [sum(start <= layer < stop for layer in seeing) for start, stop in pairwise(starts)]
    before_first = sum(layer < starts[0] for layer in seeing)
    if prunes:
        # Only the last of several prunes is seen by the decoder.
        weights = [0] * (len(prunes) - 1) + [before_first] + weights
    fixed = 0 if prunes else before_first * whole
    shares = [budget.ratio ** (len(weights) - 1 - place) for place in range(len(weights))]
    per_token = sum(weight * share for weight, share in zip(weights, shares, strict=True))
    last = (average * total - fixed) / per_token if per_token else 0.0
    keeps = [min(whole, round(last * share)) for share in shares]
    if fixed + sum(weights) > average * total + 1e-9:
        least = layout.spans * (fixed + sum(weights)) / total
        problem = f"{layout.spans * average:g} tokens cannot be reached; this recipe needs at least {least:g}"
        faults.add_at(("budget", "keep_average"), problem)
        return dict.fromkeys(steps, 1)
    return dict(zip(steps, _within(keeps, weights, average * total - fixed), strict=True))


def _within(keeps: list[int], weights: Sequence[int], allowed: float) -> list[int]:
    """Lower rounded numbers, the largest first, until their weighted sum is no more than `allowed`."""
    keeps = [max(1, keep) for keep in keeps]
    while sum(keep * weight for keep, weight in zip(keeps, weights, strict=True)) > allowed + 1e-9:
        candidates = [place for place, weight in enumerate(weights) if weight and keeps[place] > 1]
        keeps[max(candidates, key=lambda place: (keeps[place], -place))] -= 1
    return list(accumulate(keeps, min))  # a stage never gives back what an earlier one took

"""Which stages of a recipe can work together, before a model is known."""

from __future__ import annotations

from vtc.facts.model import ModelFacts
from vtc.plan.faults import Faults
from vtc.plan.stages import NUMBERS
from vtc.plan.state import Rules
from vtc.recipe import Recipe
from vtc.recipe.projectors import PROJECTORS
from vtc.recipe.selectors import ENCODER_SELECTORS
from vtc.recipe.stages import STAGES, Place
from vtc.tables import line


def check_combination(recipe: Recipe, faults: Faults, facts: ModelFacts | None = None) -> None:
    """Report stages that cannot work together on any model; one that is known makes advice fit it."""
    places = _places(recipe, faults)
    for number, (stage, place) in enumerate(zip(recipe.stages, places, strict=True)):
        numbers = line(NUMBERS, stage, "NUMBERS of vtc.plan.stages")
        numbers.check(stage, Rules(number, place, recipe.stages[:number], facts, faults))
    _check_budget(recipe, faults)
    if recipe.split_text and recipe.split_at is None:
        readers = [name for name, one in ENCODER_SELECTORS.items() if one.text_aware]
        readers += [name for name, one in PROJECTORS.items() if one.text_aware]
        these = ", ".join(readers)
        faults.add_at(
            ("split_text",), f"nothing before the decoder reads the question (these do: {these}); leave it out"
        )


def _places(recipe: Recipe, faults: Faults) -> list[Place]:
    """Where each stage acts; report those that stand after one of a later place."""
    places: list[Place] = []
    latest = 0
    for number, stage in enumerate(recipe.stages):
        before = places[latest] if places else stage.place
        places.append(max(stage.place, min(before, stage.until or stage.place)))
        if places[number] >= before:
            latest = number
        else:
            problem = f"{stage.deed} happens before {recipe.stages[latest].deed}; move it before stages.{latest}"
            faults.add(number, "", problem)
    return places


def _check_budget(recipe: Recipe, faults: Faults) -> None:
    """Report a budget that nothing spends, and stages that have both a budget and a keep, or neither."""
    spending = [(number, stage) for number, stage in enumerate(recipe.stages) if stage.spends_budget]
    if recipe.budget is not None and not spending:
        kinds = " or ".join(kind for kind, entry in STAGES.items() if entry.spends_budget)
        faults.add_at(("budget",), f"nothing to spend it: the recipe has no {kinds} stage")
    elastic = [number for number, stage in spending if stage.budgets]
    for number in elastic[1:]:
        faults.add(number, "keep", f"stages.{elastic[0]} has the budgets of this recipe; give one number or a fraction")
    for number, stage in spending:
        keep = getattr(stage, "keep", None)
        if keep is None and recipe.budget is None:
            faults.add(number, "", "keep is missing; give a number of tokens, a fraction, or the recipe a budget")
        elif keep is not None and recipe.budget is not None:
            faults.add(number, "keep", "is the recipe's budget to decide; leave one of the two out")

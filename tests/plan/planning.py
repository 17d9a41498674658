"""What tests of plans have in common."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume

from tests.tiny import recipe
from vtc.errors import RecipeError
from vtc.facts.model import ModelFacts
from vtc.plan import TokenPlan, plan
from vtc.recipe import Recipe
from vtc.recipe.selectors import ENCODER_SELECTORS

CLS = {"kind": "prune", "keep": 14, "selector": "cls_attention"}
RANDOM = {"kind": "prune", "keep": 14, "selector": "random"}


def faults(facts: ModelFacts, *stages: dict[str, Any]) -> list[str]:
    """What is wrong with these stages on a model, without the place."""
    with pytest.raises(RecipeError) as error:
        plan(recipe(*stages), facts)
    return [line.removeprefix("recipe: ") for line in str(error.value).splitlines()]


def without(flag: str) -> str:
    """Selectors of still images that lack a property, as messages list them."""
    return ", ".join(n for n, e in ENCODER_SELECTORS.items() if not getattr(e, flag) and not e.across_frames)


def planned(data: dict[str, Any], facts: ModelFacts) -> tuple[Recipe, TokenPlan]:
    """A recipe that works on the model, with its plan; others are no example."""
    found = Recipe.model_validate(data)
    try:
        return found, plan(found, facts)
    except RecipeError:
        assume(False)
        raise

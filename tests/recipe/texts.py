"""What tests of recipes as text have in common."""

from __future__ import annotations

import pytest

from vtc.errors import RecipeError
from vtc.recipe import parse_recipe


def faults(text: str, *overrides: str) -> list[str]:
    """The lines of the error that a text raises."""
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, file="r.yaml", overrides=overrides)
    return str(error.value).splitlines()


def with_stage(stage: str) -> str:
    """A recipe whose only stage stands on line 4."""
    return f"version: 1\nname: test\nstages:\n  - {stage}\n"


PRUNE = with_stage("{kind: prune, keep: 8, selector: random}")

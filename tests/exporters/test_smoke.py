"""Every shipped recipe goes through the whole pipeline on a tiny random model."""

from __future__ import annotations

import pytest

from exporters import smoke
from vtc.recipe import builtin_recipes, load_recipe


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_shipped_recipe_makes_a_running_bundle(name: str) -> None:
    smoke.run(load_recipe(name))

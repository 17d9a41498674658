"""What a user may write in a recipe, and how a file becomes a `Recipe`.

Importing it loads pydantic and yaml, and neither torch nor numpy.
"""

from __future__ import annotations

from vtc.recipe.loading import builtin_recipes, load_recipe, parse_recipe
from vtc.recipe.recipe import NONE, Recipe, RecipeSource
from vtc.recipe.selectors import SELECTORS
from vtc.recipe.stages import STAGES

__all__ = ["NONE", "SELECTORS", "STAGES", "Recipe", "RecipeSource", "builtin_recipes", "load_recipe", "parse_recipe"]

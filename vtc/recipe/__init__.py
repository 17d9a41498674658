"""What a user may write in a recipe, and how a file becomes a `Recipe`."""

from __future__ import annotations

from vtc.recipe.loading import Origin, Recipe, builtin_recipes, load_recipe, parse_recipe
from vtc.recipe.selectors import (
    SELECTORS,
    AnySelector,
    ClsAttentionEntry,
    LearnedEntry,
    PrunerTraining,
    RandomEntry,
    RelevanceEntry,
    RelevanceTraining,
    TextAttentionEntry,
    UniformEntry,
)
from vtc.recipe.stages import (
    STAGES,
    AnyStage,
    Budget,
    DropLayersEntry,
    FrequencyFilterEntry,
    PruneEntry,
    PruneInDecoderEntry,
    VisualExitEntry,
)

__all__ = [
    "SELECTORS",
    "STAGES",
    "AnySelector",
    "AnyStage",
    "Budget",
    "ClsAttentionEntry",
    "DropLayersEntry",
    "FrequencyFilterEntry",
    "LearnedEntry",
    "Origin",
    "PruneEntry",
    "PruneInDecoderEntry",
    "PrunerTraining",
    "RandomEntry",
    "Recipe",
    "RelevanceEntry",
    "RelevanceTraining",
    "TextAttentionEntry",
    "UniformEntry",
    "VisualExitEntry",
    "builtin_recipes",
    "load_recipe",
    "parse_recipe",
]

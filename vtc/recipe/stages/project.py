"""`project` in a recipe."""

from __future__ import annotations

from typing import Literal

from vtc.recipe.projectors import PROJECTORS, Projector
from vtc.recipe.stages.base import Place, StageEntry
from vtc.recipe.values import KeepOrBudgets


class ProjectEntry(StageEntry):
    """Put a trained projector in the place of the model's own, which makes fewer tokens of the encoder's.

    Every token after it is a mixture of many, so none has a place in the image.
    """

    summary = "a trained projector that makes fewer tokens"
    acts = Place.PROJECTOR
    keeps_grid = False
    keeps_places = False
    spends_budget = True
    projectors = PROJECTORS
    kind: Literal["project"] = "project"
    keep: KeepOrBudgets | None = None
    """Tokens of an image that the projector makes: a number, or a share of those that come in; or, for an elastic
    projector, a list of numbers, of which each question takes one. Left out where the recipe has a budget."""
    projector: Projector
    """What makes them: the name of a projector, or its name and options."""

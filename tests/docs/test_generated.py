"""The pages say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.generate import PAGES, methods, written
from vtc.recipe import SELECTORS, STAGES, builtin_recipes
from vtc.recipe.budget import Budget
from vtc.recipe.recipe import Recipe
from vtc.recipe.selectors.decoder.relevance import RelevanceTraining
from vtc.recipe.selectors.learned import PrunerTraining
from vtc.recipe.training import DistillationTraining
from vtc.recipe.values import Written

BASELINES = {"random", "uniform", "pooling"}
MODELS = [
    Recipe,
    Budget,
    *STAGES.values(),
    *SELECTORS.values(),
    PrunerTraining,
    RelevanceTraining,
    DistillationTraining,
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_committed_page_is_what_the_script_writes(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == written(page), "run `make docs`"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_says_what_it_means(model: type[Written]) -> None:
    silent = [key for key, field in model.model_fields.items() if not field.description]
    assert set(silent) <= {"name", "kind"}


def test_every_selector_with_a_paper_is_a_method() -> None:
    told = {method.word for method in methods()}
    assert {f"`selector: {word}`" for word in SELECTORS if word not in BASELINES} <= told


def test_every_recipe_with_a_paper_is_in_the_table_of_methods() -> None:
    told = {recipe for method in methods() for recipe in method.recipes}
    assert set(builtin_recipes()) - told == {"none", "random", "uniform"}

"""`vtc check --smoke`: a recipe goes through the whole pipeline on a tiny random model.

`tests/cli/test_check.py` has one that leaves a layer open; `make test` has one here that leaves a part untrained.
"""

from __future__ import annotations

import pytest

from exporters import smoke
from tests.tiny import recipe
from vtc.recipe import load_recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("visual-layer-drop", marks=pytest.mark.full), "relevance"])
def test_recipe_that_leaves_something_open_makes_a_running_bundle(name: str) -> None:
    smoke.run(load_recipe(name))


@pytest.mark.parametrize(
    ("stage", "needed"),
    [
        ({"kind": "visual_exit", "layer": 20}, ("decoder", 20)),
        ({"kind": "drop_layers", "layers": [3, 30]}, ("decoder", 30)),
        ({"kind": "prune", "keep": 4, "selector": {"name": "cls_attention", "layers": [-7]}}, ("encoder", 7)),
    ],
)
def test_the_model_is_as_deep_as_the_recipe_asks(stage: dict[str, object], needed: tuple[str, int]) -> None:
    assert needed in set(smoke._layer_numbers(recipe(stage)))

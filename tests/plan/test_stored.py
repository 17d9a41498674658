"""Plans of bundles: what a manifest holds in their place is refused in a line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.evaluate.bundles import bundle_with_plan, plan
from tests.runtime.toy import make_toy
from vtc.bundle.manifest import Manifest, load_manifest
from vtc.errors import BundleError
from vtc.plan.stored import budget_plans, plans_of, recipe_of
from vtc.plan.token_plan import TokenPlan

ODD: list[Any] = [None, -1, "x", [], {}, 1e300, [[1]]]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_manifest(bundle_with_plan(make_toy(), tmp_path_factory.mktemp("stored") / "bundle"))


def test_a_plan_is_what_it_was() -> None:
    made = plan(4)
    assert TokenPlan.from_dict(made.to_dict()) == made


@pytest.mark.parametrize("part", [name for name in plan(4).to_dict() if name not in ("provisional", "positions")])
def test_fields_of_other_types_are_refused(manifest: Manifest, part: str) -> None:
    kept = manifest.plan[part]
    with pytest.raises(BundleError, match="holds no plan"):
        plans_of(replace(manifest, plan={name: value for name, value in manifest.plan.items() if name != part}))
    refused = 0
    for odd in ODD:
        try:
            plans_of(replace(manifest, plan={**manifest.plan, part: odd}))
        except BundleError:
            refused += 1
        else:
            assert isinstance(odd, type(kept)), odd
    assert refused >= 4


def test_each_budget_has_its_plan(manifest: Manifest) -> None:
    largest, smaller = plan(8), plan(4)
    served = tuple(replace(manifest.images[0], budget=keep) for keep in (8, 4))
    stages = [{"kind": "prune", "keep": [4, 8], "selector": "random"}]
    recipe = {"version": 1, "name": "elastic", "stages": stages}
    elastic = replace(manifest, images=served, recipe=recipe, plan=replace(largest, smaller=(smaller,)).to_dict())
    assert budget_plans(elastic)[4] == plans_of(elastic.at_budget(4))[0] == smaller
    assert plans_of(elastic)[0].keep == 8
    for told in (largest, replace(largest, smaller=(replace(smaller, keep=-1),))):
        with pytest.raises(BundleError, match="holds no plan"):
            budget_plans(replace(elastic, plan=told.to_dict()))
    assert budget_plans(manifest) == {}


def test_numbers_of_no_plan_are_refused(manifest: Manifest) -> None:
    for change in (
        {"keep": -1},
        {"flops": {"exact": 1}},
        {"flops_parts": {}},
        {"decoder_visual_tokens": []},
        {"decoder_layers": [0, 1]},
        {"spans": 0},
    ):
        with pytest.raises(BundleError, match="holds no plan"):
            plans_of(replace(manifest, baseline_plan={**manifest.baseline_plan, **change}))


def test_a_recipe_that_is_none_is_refused(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="holds no recipe"):
        recipe_of(replace(manifest, recipe={"version": 1, "name": "x", "stages": [3]}))

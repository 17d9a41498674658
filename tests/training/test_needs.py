"""What a training takes is said before it starts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.tiny import recipe
from tests.training.conftest import RECIPE
from vtc.compressed.needs import costs_of
from vtc.models.base import VLMAdapter
from vtc.needs import Need
from vtc.plan import plan
from vtc.recipe import NONE, Recipe, parse_recipe
from vtc.training.auto import AutoTrained
from vtc.training.needs import announcement, training_need

PARTS = {
    "pruner": {"kind": "prune", "keep": 4, "selector": {"name": "learned"}},
    "relevance": {"kind": "prune_in_decoder", "layer": 1, "keep": 4, "selector": {"name": "relevance"}},
    "projector": {"kind": "project", "keep": 4, "projector": "deco"},
}


def need(adapter: VLMAdapter, wanted: Recipe) -> Need:
    plans = plan(wanted, adapter.facts), plan(NONE, adapter.facts)
    return training_need(wanted, 0, *plans, costs_of(adapter, speed=True))


@pytest.mark.parametrize("part", PARTS)
def test_every_training_takes_more_than_the_model_and_some_time(part: str, adapter: VLMAdapter) -> None:
    found = need(adapter, recipe(PARTS[part]))
    loaded = costs_of(adapter, speed=True).loaded()
    assert found.work > loaded.work
    assert found.seconds is not None
    assert loaded.seconds is not None
    assert found.seconds > loaded.seconds


def test_more_steps_take_longer_and_larger_ones_more_memory(adapter: VLMAdapter) -> None:
    few, many, large = (
        need(adapter, recipe({"kind": "prune", "keep": 4, "selector": {"name": "learned", "training": training}}))
        for training in ({"steps": 10, "batch": 4}, {"steps": 10_000, "batch": 4}, {"steps": 10, "batch": 64})
    )
    assert few.work == many.work < large.work
    assert (few.seconds or 0) < (many.seconds or 0)


def test_what_is_kept_of_images_is_bounded(adapter: VLMAdapter) -> None:
    none, all_of_it = (
        need(adapter, recipe({"kind": "prune", "keep": 4, "selector": {"name": "learned", "training": training}}))
        for training in ({"images": 10**6, "memory_gb": 0.0}, {"images": 10**6, "memory_gb": 1.0})
    )
    assert 0 < all_of_it.work - none.work <= 2 * 2**30


def test_images_that_there_are_not_are_not_kept(adapter: VLMAdapter) -> None:
    for part in PARTS.values():
        wanted = recipe(part)
        arguments = wanted, 0, plan(wanted, adapter.facts), plan(NONE, adapter.facts), costs_of(adapter, speed=True)
        few, many = training_need(*arguments, items=2), training_need(*arguments)
        assert few.work <= many.work
        assert (few.seconds or 0) < (many.seconds or 0)


@pytest.mark.parametrize(("part", "count"), [("pruner", "1000 steps"), ("relevance", "100 epochs")])
def test_steps_memory_and_time_are_said(part: str, count: str, adapter: VLMAdapter) -> None:
    words = announcement(adapter, recipe(PARTS[part]), 0, "reference")
    assert words.startswith(f"training the {part} of stages.0: {count}, about ")
    assert " GB of memory and " in words


def test_they_are_said_before_the_first_step(
    adapter: VLMAdapter, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[int] = []

    def report(_label: str, _done: int, _total: int) -> None:
        steps.append(len(caplog.records))

    caplog.set_level(logging.WARNING, "vtc.training.auto")
    AutoTrained(adapter, "abc", tmp_path, str(source), report=report)(parse_recipe(RECIPE.format(steps=2)), 0)
    assert "2 steps, about" in caplog.text
    assert min(steps) == 1

"""A recipe entry and its module say the same: both tables are whole, readings are read, parameters are counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.selectors.decoder.fakes import FakeAdapter, adapter, decoder_tokens
from tests.selectors.inputs import NAMES, RUNNING, VIEWS, entry_of, facts_of, layout_of, make, tokens, views_of
from vtc.recipe.needs import Reading
from vtc.recipe.selectors import DECODER_SELECTORS, ENCODER_SELECTORS
from vtc.selectors import ENCODER_MODULES
from vtc.selectors.decoder import DECODER_MODULES, build_decoder_selector
from vtc.visual_tokens import VisualTokens

ALL = [*NAMES, *VIEWS]
GRID = (6, 6)


class Recorded(dict[str, Reading]):
    """Readings that note which of them are asked for."""

    def __init__(self, readings: dict[str, Reading]) -> None:
        super().__init__(readings)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Reading:
        self.asked.add(name)
        return super().__getitem__(name)


CASES = [(name, has_cls) for name in ALL for has_cls in (True, False) if has_cls or not entry_of(name).needs_cls]
"""Selectors on encoders with and without a CLS token."""


def test_every_entry_has_a_module() -> None:
    assert set(ENCODER_MODULES) == set(ENCODER_SELECTORS.values())
    assert set(DECODER_MODULES) == set(DECODER_SELECTORS.values())


def test_every_entry_is_tried_here() -> None:
    assert {entry_of(name).name for name in ALL} == set(ENCODER_SELECTORS)


@pytest.mark.parametrize(("name", "has_cls"), CASES)
def test_readings_of_the_entry_are_all_read_and_no_others(name: str, has_cls: bool) -> None:
    selector = make(name, GRID, has_cls)
    readings = Recorded(selector.readings)
    selector.readings = readings
    selector.select(tokens(1, GRID, views=views_of(name)), 12)
    assert readings.asked == set(readings)
    facts = facts_of(layout_of(name, GRID), has_cls)
    assert has_cls or not any("cls" in reading.kind for reading in readings.values())
    assert selector.needs == selector.entry.needs(selector.entry.readings(facts, RUNNING))


@pytest.mark.parametrize(("name", "has_cls"), CASES)
def test_what_the_entry_does_not_need_is_not_looked_at(name: str, has_cls: bool) -> None:
    selector = make(name, GRID, has_cls)
    given = tokens(1, GRID, views=views_of(name))
    needs = selector.needs
    bare: VisualTokens = replace(
        given,
        readings={reading: given.readings[reading] for reading in needs.readings},
        projected=given.projected if needs.projected else None,
        text=given.text if needs.text else None,
    )
    assert torch.equal(selector.select(bare, 12), selector.select(given, 12))


@pytest.mark.parametrize("name", ALL)
def test_what_the_entry_needs_beyond_readings_is_looked_at(name: str) -> None:
    selector = make(name, GRID)
    given = tokens(1, GRID, views=views_of(name))
    without = {"projected": replace(given, projected=None), "text": replace(given, text=None)}
    for part, bare in without.items():
        if getattr(selector.needs, part):
            with pytest.raises(AssertionError, match="is given"):
                selector.prune(bare, 12)


@pytest.mark.parametrize("name", ALL)
def test_parameters_of_the_entry_are_those_of_the_module(name: str) -> None:
    facts = facts_of(layout_of(name, GRID))
    own = sum(parameter.numel() for parameter in make(name, GRID).parameters())
    assert entry_of(name).parameters(facts) == own
    assert bool(own) == (name == "learned")


# Inside the decoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODER_SELECTORS)
def test_the_layer_of_the_entry_is_looked_at_and_its_input_wanted(name: str) -> None:
    entry = DECODER_SELECTORS[name].model_validate({"name": name})
    read = 3 if entry.reads_before else 4
    fake = FakeAdapter({read: torch.rand(1, 2, 20, 20)}, {read: torch.rand(1, 20, 2, 4)})
    selector = build_decoder_selector(entry, adapter(fake), after=4, before=3)
    given = decoder_tokens(torch.rand(1, 20, 8), 2, 12)
    assert selector.layer == read
    assert selector.select(given, 5).shape == (1, 5)
    without = replace(given, before=None)
    if entry.reads_before:
        with pytest.raises(AssertionError, match="is given its input"):
            selector.select(without, 5)
    else:
        assert torch.equal(selector.select(without, 5), selector.select(given, 5))


@pytest.mark.parametrize("name", DECODER_SELECTORS)
def test_parameters_of_the_entry_are_those_of_the_module_in_the_decoder(name: str) -> None:
    entry = DECODER_SELECTORS[name].model_validate({"name": name})
    selector = build_decoder_selector(entry, adapter(FakeAdapter()), after=4, before=3)
    own = sum(parameter.numel() for parameter in selector.parameters())
    assert entry.parameters() == own
    assert bool(own) == (name == "relevance")

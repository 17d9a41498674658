"""Published configurations: facts count the visual tokens that the family's own processor writes."""

from __future__ import annotations

import pytest

from tests.models.published_counts import EXPECTED, EXPECTED_AT, PUBLISHED, SIZES
from vtc.layout import Serving
from vtc.models import FAMILIES, read_config, read_facts

SERVED = [name for name in EXPECTED if read_config(PUBLISHED / name)["model_type"] in FAMILIES]
AT_SIZES = [
    (name, size, count)
    for name, counts in EXPECTED_AT.items()
    if name in SERVED
    for size, count in zip(SIZES, counts, strict=True)
]


def tokens(name: str, width: int, height: int) -> int:
    facts = read_facts(PUBLISHED / name, Serving(image_size=(height, width)))
    return facts.layout.spans * facts.visual_tokens


@pytest.mark.parametrize("name", [name for name in SERVED if not name.startswith("llava-1.5")])
def test_facts_count_what_the_processor_writes(name: str) -> None:
    assert tokens(name, 1280, 720) == EXPECTED[name]


@pytest.mark.parametrize(("name", "size", "count"), [case for case in AT_SIZES if not case[0].startswith("llava-1.5")])
def test_facts_count_what_the_processor_writes_at_other_sizes(name: str, size: tuple[int, int], count: int) -> None:
    assert tokens(name, *size) == count


@pytest.mark.parametrize("name", [name for name in SERVED if name.startswith("llava-1.5")])
def test_families_of_one_size_take_no_other(name: str) -> None:
    assert read_facts(PUBLISHED / name).visual_tokens == EXPECTED[name]

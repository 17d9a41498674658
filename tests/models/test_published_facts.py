"""Facts of published configurations count the visual tokens that the families' own processors write."""

from __future__ import annotations

import pytest

from tests.models.published_counts import EXPECTED, EXPECTED_AT, PUBLISHED, SIZES
from vtc.facts.layout import ImageOptions
from vtc.models import read_facts

AT_SIZES = [
    (name, size, count)
    for name in EXPECTED
    for size, count in zip(((1280, 720), *SIZES), (EXPECTED[name], *EXPECTED_AT.get(name, ())), strict=False)
]


@pytest.mark.parametrize(("name", "size", "count"), AT_SIZES)
def test_facts_count_what_the_processor_writes(name: str, size: tuple[int, int], count: int) -> None:
    width, height = size
    facts = read_facts(PUBLISHED / name, ImageOptions(image_size=(height, width)))
    assert facts.layout.spans * facts.visual_tokens == count

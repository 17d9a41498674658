"""Published configurations: facts count the visual tokens that the family's own processor writes."""

from __future__ import annotations

import pytest

from tests.models.published_counts import EXPECTED, EXPECTED_AT, PUBLISHED, SIZES
from vtc.errors import InputError
from vtc.layout import Serving
from vtc.models import FAMILIES, read_config, read_facts

SERVED = [name for name in EXPECTED if read_config(PUBLISHED / name)["model_type"] in FAMILIES]
AT_SIZES = [
    (name, size, count)
    for name in SERVED
    for size, count in zip(((1280, 720), *SIZES), (EXPECTED[name], *EXPECTED_AT.get(name, ())), strict=False)
]


@pytest.mark.parametrize(("name", "size", "count"), AT_SIZES)
def test_facts_count_what_the_processor_writes(name: str, size: tuple[int, int], count: int) -> None:
    width, height = size
    try:
        facts = read_facts(PUBLISHED / name, Serving(image_size=(height, width)))
    except InputError:  # of families that make the same of every image
        facts = read_facts(PUBLISHED / name)
    assert facts.layout.spans * facts.visual_tokens == count

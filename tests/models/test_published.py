"""Published configurations have the published sizes, and their own processors give the tabled numbers of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tests.models.published_counts import (
    EXPECTED,
    EXPECTED_AT,
    NAMES,
    PUBLISHED,
    SIZES,
    load_config,
    load_processor,
    placeholders,
)
from vtc.models import FAMILIES
from vtc.models.refused import NEAREST

PARAMETERS = {
    "gemma-3-4b-it": 4.30,
    "idefics3-8b": 8.46,
    "internvl3-2b": 2.09,
    "llava-1.5-7b": 7.06,
    "llava-onevision-qwen2-0.5b-ov": 0.894,
    "llava-onevision-qwen2-7b-ov": 8.03,
    "llava-v1.6-mistral-7b": 7.57,
    "llava-v1.6-vicuna-7b": 7.06,
    "paligemma2-3b-pt-224": 3.03,
    "qwen2-vl-2b": 2.21,
    "qwen2.5-vl-3b": 3.75,
    "qwen2.5-vl-7b": 8.29,
    "qwen3-vl-2b": 2.13,
    "qwen3-vl-30b-a3b": 31.07,
    "smolvlm-2.2b": 2.25,
    "smolvlm-256m": 0.256,
    "smolvlm2-500m": 0.507,
}
# Billions, as the hub shows them for each repository's weights.


def test_every_fixture_is_in_every_table() -> None:
    assert set(NAMES) == set(EXPECTED) == set(PARAMETERS)
    sources = (PUBLISHED / "SOURCES.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in sources] == []
    assert {load_config(name).model_type for name in NAMES} == set(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_a_1280x720_image(name: str) -> None:
    assert placeholders(name, 1280, 720) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED_AT)
def test_tokens_at_other_sizes(name: str) -> None:
    assert tuple(placeholders(name, *size) for size in SIZES) == EXPECTED_AT[name]


@pytest.mark.parametrize("name", NAMES)
def test_configuration_gives_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(load_config(name))
    model.tie_weights()
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(PARAMETERS[name], rel=2.5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_views_of_a_fixed_size_agree_with_the_vision_tower(name: str) -> None:
    """Processors that make square views make them of the size that the tower was trained on."""
    config, processor = load_config(name), load_processor(name).image_processor
    if config.model_type.startswith("qwen"):
        assert processor.patch_size == config.vision_config.patch_size
        assert processor.merge_size == config.vision_config.spatial_merge_size
        return
    side = config.vision_config.image_size
    views = getattr(processor, "max_image_size", None) or processor.size
    assert _sides(views) <= {side if isinstance(side, int) else side[0]}


def test_refusals_name_a_family_and_a_reason() -> None:
    assert not set(FAMILIES) & set(NEAREST)
    assert {family for family, _ in NEAREST.values()} <= set(FAMILIES)
    assert all(reason and "\n" not in reason for _, reason in NEAREST.values())
    # Names are really those of transformers, except where the code is the repository's own.
    strangers = [name for name, (_, why) in NEAREST.items() if name not in CONFIG_MAPPING_NAMES]
    assert [name for name in strangers if "own code" not in NEAREST[name][1]] == []


def _sides(size: Any) -> set[int]:
    return {side for side in dict(size).values() if side is not None}

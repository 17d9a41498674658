"""Stages and the section that are about experts: what is no such value is told, and what is comes back as it was."""

from __future__ import annotations

from typing import Any

import pytest

from tests.recipe.texts import faults, with_stage
from tests.tiny import recipe
from vtc.recipe import parse_recipe

LISTS = "is auto or for each layer a list of experts such as [0, 3], not "
GROUPS = "is auto or for each layer a list of groups of [expert, share], such as [[[0, 0.7], [3, 0.3]], [[1, 1]]], not "
BAD_STAGES = {
    "kind: prune_experts": "stages.0: experts: auto needs keep, the number of experts of a layer that stay",
    "kind: prune_experts, keep: 2, experts: [[0, 1]]": (
        "stages.0: keep is only for experts: auto, the lists already say how many"
    ),
    "kind: prune_experts, keep: 0": "stages.0.keep: is a number of experts such as 4 or a fraction such as 0.5, not 0",
    "kind: prune_experts, keep: 1.0": (
        "stages.0.keep: is a number of experts such as 4 or a fraction such as 0.5, not 1.0"
    ),
    "kind: prune_experts, keep: true": (
        "stages.0.keep: is a number of experts such as 4 or a fraction such as 0.5, not True"
    ),
    "kind: prune_experts, experts: []": f"stages.0.experts: {LISTS}[]",
    "kind: prune_experts, experts: [0, 1]": f"stages.0.experts: {LISTS}[0, 1]",
    "kind: prune_experts, experts: [[0], [-1]]": f"stages.0.experts: {LISTS}[[0], [-1]]",
    "kind: prune_experts, experts: [[0], [1.0]]": f"stages.0.experts: {LISTS}[[0], [1.0]]",
    "kind: prune_experts, experts: [[1, 0]]": (
        "stages.0.experts: lists the experts of a layer in ascending order, each once"
    ),
    "kind: prune_experts, experts: [[1, 1]]": (
        "stages.0.experts: lists the experts of a layer in ascending order, each once"
    ),
    "kind: prune_experts, experts: [[0, 1], [1]]": "stages.0.experts: lists equally many experts for each layer",
    "kind: visual_experts": "stages.0: experts: auto needs keep, the number of experts that visual tokens choose among",
    "kind: visual_experts, keep: 2, experts: [[0, 1]]": (
        "stages.0: keep is only for experts: auto, the lists already say how many"
    ),
    "kind: merge_experts": "stages.0: groups: auto needs keep, the number of experts of a layer that are left",
    "kind: merge_experts, keep: 1, groups: [[[[0, 1]]]]": (
        "stages.0: keep is only for groups: auto, the lists already say how many"
    ),
    "kind: merge_experts, groups: []": f"stages.0.groups: {GROUPS}[]",
    "kind: merge_experts, groups: [[[]]]": f"stages.0.groups: {GROUPS}[[[]]]",
    "kind: merge_experts, groups: [[[0, 1]]]": f"stages.0.groups: {GROUPS}[[[0, 1]]]",
    "kind: merge_experts, groups: [[[[0, .nan]]]]": f"stages.0.groups: {GROUPS}[[[[0, nan]]]]",
    "kind: merge_experts, groups: [[[[0, 1.5], [1, -0.5]]]]": (f"stages.0.groups: {GROUPS}[[[[0, 1.5], [1, -0.5]]]]"),
    "kind: merge_experts, groups: [[[[0, 0.5], [1, 0.4]]]]": (
        "stages.0.groups: has shares that sum to 1 in each group, and layer 0 does not"
    ),
    "kind: merge_experts, groups: [[[[0, 1]], [[1, 1]]], [[[0, 0.5], [1, 0.5]]]]": (
        "stages.0.groups: lists equally many groups for each layer"
    ),
    "kind: merge_experts, groups: [[[[0, 1]], [[0, 1]]]]": (
        "stages.0.groups: lists each expert of a layer once, and layer 0 does not"
    ),
    "kind: merge_experts, groups: [[[[0, 0.5], [2, 0.5]], [[1, 1]]], [[[0, 1]], [[1, 1]]]]": (
        "stages.0.groups: lists each expert of a layer once, and layer 1 does not"
    ),
}
BAD_SECTIONS = {
    "{}": "experts.devices: required, and not given",
    "{devices: 0}": "experts.devices: should be greater than or equal to 1, not 0",
    "{devices: 2, copies: 2}": "experts: copies of experts are for placement: eplb, not for modality",
    "{devices: 1, homes: modality}": "experts: homes: modality needs at least 2 devices",
    "{devices: 2, placement: nearest}": (
        "experts.placement: is modality, contiguous, random, balanced, eplb or solved, not 'nearest'"
    ),
    "{devices: 2, place: eplb}": "experts.place: unknown key, did you mean 'placement'?",
}


@pytest.mark.parametrize("stage", BAD_STAGES)
def test_bad_stages(stage: str) -> None:
    assert faults(with_stage(f"{{{stage}}}")) == [f"r.yaml:4: {BAD_STAGES[stage]}"]


@pytest.mark.parametrize("section", BAD_SECTIONS)
def test_bad_sections(section: str) -> None:
    (line,) = faults(f"version: 1\nname: test\nexperts: {section}\nstages: []\n")
    assert line == f"r.yaml:3: {BAD_SECTIONS[section]}"


@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "prune_experts", "keep": 0.5},
        {"kind": "prune_experts", "experts": [[0, 3], [1, 2]]},
        {"kind": "merge_experts", "keep": 3, "linkage": "complete"},
        {"kind": "merge_experts", "groups": [[[[0, 0.25], [2, 0.75]], [[1, 1.0]]]]},
    ],
    ids=str,
)
def test_what_is_written_is_read_again(stage: dict[str, Any]) -> None:
    data = recipe(stage).model_copy(update={})
    again = parse_recipe(data.to_yaml())
    assert again.digest == data.digest
    assert again.canonical()["stages"][0] == data.canonical()["stages"][0]


def test_the_section_is_part_of_what_a_recipe_does() -> None:
    text = "version: 1\nname: test\nstages: []\n"
    plain, placed = parse_recipe(text), parse_recipe(text + "experts: {devices: 4, placement: eplb, copies: 4}\n")
    assert placed.digest != plain.digest
    assert placed.measured == ["experts"]
    assert placed.autos == plain.measured == []
    assert parse_recipe(placed.to_yaml()).digest == placed.digest

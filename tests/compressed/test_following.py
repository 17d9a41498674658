"""Values that go with tokens through the decoder: whatever a recipe drops, hands back or merges, each keeps its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import RECIPES, compressed
from vtc.compressed.following import following
from vtc.models.base import VLMAdapter

NUMBER, VISUAL, PASSED = range(3)
"""What goes along: a token's number in the batch, whether it is visual, how many segments it went through."""


@pytest.mark.parametrize(
    "name", ["none", "exit", "cuts", "visual_only", "visual_only_first", "skip_after_cut", "merged_in_the_decoder"]
)
def test_each_token_keeps_what_is_known_of_it(adapter: VLMAdapter, prompts: Any, name: str) -> None:
    """In a batch with one image, two, one in mid-prompt, and none."""
    model = compressed(adapter, *RECIPES[name])
    ids, mask, pixels = model.inputs(*prompts)
    real, visual = mask.bool(), ids == adapter.image_token_id
    numbers = torch.arange(ids.numel()).reshape(ids.shape)
    entered: list[tuple[Tensor, Tensor, Tensor]] = []

    def enter(values: Tensor, seen: Tensor, position_ids: Tensor) -> None:
        entered.append((values, seen.bool(), position_ids))

    def leave(values: Tensor) -> Tensor:
        return values + torch.tensor([0, 0, 1])

    with following(model, enter, leave) as follow, torch.inference_mode():
        follow(torch.stack([numbers, visual.long(), torch.zeros_like(ids)], dim=-1))
        _, state = model.prefill(ids, mask, pixels)

    places = (mask.cumsum(dim=1) - 1).flatten()
    passed = dict.fromkeys(numbers[real].tolist(), 0)
    cut = 0
    for (values, seen, position_ids), segment in zip(entered, model.plan.segments, strict=True):
        cut += segment.enters == "prune"
        stays = real & ~visual
        if segment.sees == "all":
            stays[visual] = (state.kept[0][:, :, None] == state.kept[cut][:, None]).any(dim=-1).flatten()
        found = values[seen]
        assert found[:, NUMBER].tolist() == numbers[stays].tolist()
        assert torch.equal(found[:, VISUAL].bool(), visual[stays])
        assert torch.equal(position_ids[seen], places[found[:, NUMBER]])
        for number, _, times in found.tolist():
            assert times == passed[number]
            passed[number] += 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.segments)

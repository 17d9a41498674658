"""Experts of visual tokens: routers choose among those alone for them, and text tokens are sent as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.models.test_fewer_experts import EVERY, EXPERTS, GROUPED, LAYERS, blocks, listed, logits, one_layer
from tests.tiny import RECIPES, compressed, image, recipe
from vtc.calibrate.expert_use import expert_use
from vtc.errors import InputError
from vtc.inputs.schedule import token_rows
from vtc.models.base import VLMAdapter
from vtc.models.fewer_experts import keep_experts, split_experts
from vtc.models.parts.split_mixture import ModalityRows, tell_rows
from vtc.plan import plan

OWN = [[1, 4, 6], [0, 2, 7], [3, 4, 5], [0, 1, 2]]
CUT = {"kind": "prune_in_decoder", "layer": 1, "keep": 6, "selector": {"queries": "all_text"}}


def visual(sets: list[list[int]]) -> dict[str, Any]:
    """A stage that gives visual tokens these experts of each layer."""
    return {"kind": "visual_experts", "experts": sets}


def masked(mixture: VLMAdapter, sets: list[list[int]], images: int) -> Tensor:
    """Logits of the whole model whose routers, for visual tokens, cannot choose other experts than these."""
    whole = compressed(mixture)
    ids, mask, pixels = whole.inputs([[image(0)] * images], [mixture.chat("what is it ?", images)])
    is_visual = (ids == mixture.image_token_id).flatten()

    def choose(kept: list[int]) -> Any:
        def chosen(_: Any, __: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            outside = is_visual[:, None] & ~torch.isin(torch.arange(EXPERTS), torch.tensor(kept))
            weights, places = output[0].masked_fill(outside, -torch.inf).softmax(dim=-1).topk(2)
            return output[0], weights / weights.sum(dim=-1, keepdim=True), places

        return chosen

    handles = [
        block.gate.register_forward_hook(choose(kept)) for block, kept in zip(blocks(mixture), sets, strict=True)
    ]
    try:
        with torch.inference_mode():
            return whole.prefill(ids, mask, pixels)[0]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("images", [1, 2])
def test_visual_tokens_choose_among_their_own(mixture: VLMAdapter, images: int) -> None:
    found = logits(compressed(mixture, visual(OWN)), images=images)
    torch.testing.assert_close(found, masked(mixture, OWN, images), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, logits(compressed(mixture), images=images), atol=1e-3)


def test_text_is_sent_as_before(mixture: VLMAdapter) -> None:
    own = compressed(mixture, visual(OWN))
    torch.testing.assert_close(logits(own, images=0), logits(compressed(mixture), images=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("before", [[], [listed([0, 2, 5])], RECIPES["cuts"], RECIPES["skip_after_cut"]], ids=str)
def test_nothing_changes_where_visual_tokens_have_all(mixture: VLMAdapter, before: list[dict[str, Any]]) -> None:
    fewer = compressed(mixture, *before)
    everyone = list(range(fewer.adapter.facts.decoder.experts))
    split = compressed(mixture, *before, visual([everyone] * LAYERS))
    asked = [[image(0)], [], [image(1), image(2)]], [mixture.chat("what is it ?", count) for count in (1, 0, 2)]
    forced = [[one] * 3 for one in (5, 6, 7)]
    for ours, theirs in zip(split.score(*asked, forced), fewer.score(*asked, forced), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(theirs), atol=1e-5, rtol=1e-4)


def test_both_mixtures_share_weights_and_the_original_is_as_it_was(mixture: VLMAdapter) -> None:
    before = {name: value.clone() for name, value in mixture.model.state_dict().items()}
    split = split_experts(mixture, OWN)
    for old, new, own in zip(blocks(mixture), blocks(split), OWN, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            whole, part = getattr(new.text.experts, name), getattr(new.visual.experts, name)
            assert whole.data_ptr() == part.data_ptr()
            assert torch.equal(part, getattr(old.experts, name)[own])
            assert len(whole) == EXPERTS
    assert all(torch.equal(value, before[name]) for name, value in mixture.model.state_dict().items())
    assert mixture.facts.decoder.visual_experts == 0
    assert split.facts.decoder.visual_experts == 3
    assert not any(value.requires_grad for value in split.model.parameters())


STAGES: dict[str, list[dict[str, Any]]] = {
    "alone": [visual(OWN)],
    "of those that are left": [listed([0, 1, 2, 5]), visual([[1, 2, 3]] * LAYERS)],
    "after a cut": [CUT, {"kind": "visual_exit", "layer": 3}, visual(OWN)],
    "where visual tokens sit out": [*RECIPES["visual_only"], visual(OWN)],
}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("count", ["routed", "executed"])
def test_counts_are_what_is_computed(mixture: VLMAdapter, name: str, count: str) -> None:
    """By PyTorch, which computes chosen experts, and in the form of exported graphs, which computes all that may be."""
    model = compressed(mixture, *STAGES[name])
    ids, mask, pixels = model.inputs([[image(0)]], [mixture.chat("what is it ?")])
    if count == "executed":
        model.adapter.set_decoder_attention("grouped")
    else:  # PyTorch counts experts only where they are plain matrix products
        model.adapter.model.set_experts_implementation({"text_config": "batched_mm"})
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model.prefill(ids, mask, pixels)
    made = plan(recipe(*STAGES[name]), mixture.facts, text_tokens=int((ids != mixture.image_token_id).sum()))
    assert made.flops[count] == counter.get_total_flops()
    assert made.decoder(mixture.facts.decoder) == model.adapter.facts.decoder


@pytest.mark.parametrize("kind", GROUPED)
def test_correction_biases_and_groups_go_with_their_experts(mixture: VLMAdapter, kind: str) -> None:
    own = [0, 2, 3, 4, 5, 7]
    whole = one_layer(kind, mixture.facts)
    split, fewer = split_experts(whole, [own]), keep_experts(whole, [own])
    hidden = torch.randn(2, 6, 16)
    is_visual = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]], dtype=torch.bool)
    rows = ModalityRows(*map(torch.from_numpy, token_rows(is_visual.numpy())))
    with tell_rows(split.decoder_layers, rows):
        found = split.decoder_layers[0].mlp(hidden)
    assert split.decoder_layers[0].mlp.rows is None
    of_text, of_visual = (one.decoder_layers[0].mlp(hidden) for one in (whole, fewer))
    torch.testing.assert_close(found, torch.where(is_visual[..., None], of_visual, of_text))
    with pytest.raises(InputError, match="layer 0: the router chooses by groups of 4 experts, and 1 to 2 of each"):
        split_experts(whole, [[0, 1, 4]])


def test_experts_are_watched_only_where_all_tokens_share_them(mixture: VLMAdapter) -> None:
    with pytest.raises(InputError, match="visual tokens have experts of their own here, and experts are watched"):
        expert_use(compressed(mixture, visual([EVERY] * LAYERS)), [])

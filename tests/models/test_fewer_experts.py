"""Fewer experts: what stays computes what it did, the model that it came from is as it was."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config, Glm4MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE

from tests.tiny import compressed, image, recipe
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import for_images, served
from vtc.compressed.model import CompressedModel
from vtc.errors import InputError
from vtc.facts.model import ModelFacts
from vtc.models.base import VLMAdapter
from vtc.models.fewer_experts import keep_experts, merge_experts
from vtc.models.routers import Routed, Tokens, watching_routers
from vtc.plan import plan

LAYERS, EXPERTS = 4, 8
EVERY = list(range(EXPERTS))
ALONE = [[(expert, 1.0)] for expert in EVERY]
PAIRS = [[(2 * pair, 0.25), (2 * pair + 1, 0.75)] for pair in range(EXPERTS // 2)]


def logits(model: CompressedModel, question: str = "what is it ?", *, images: int = 1) -> Tensor:
    """Of a question's last token."""
    prompt = model.adapter.chat(question, images)
    with torch.inference_mode():
        return model.prefill(*model.inputs([[image(0)] * images], [prompt]))[0]


def blocks(adapter: VLMAdapter) -> list[Any]:
    """Its layers' mixtures."""
    return [layer.mlp for layer in adapter.decoder_layers]


def listed(kept: list[int]) -> dict[str, Any]:
    """A stage that keeps the same experts in every layer."""
    return {"kind": "prune_experts", "experts": [kept] * LAYERS}


def merging(groups: Any) -> dict[str, Any]:
    """A stage that merges the same groups in every layer."""
    return {"kind": "merge_experts", "groups": [groups] * LAYERS}


@pytest.mark.parametrize("stage", [listed(EVERY), merging(ALONE)], ids=["all kept", "groups of one"])
def test_nothing_changes_where_all_experts_are_left(mixture: VLMAdapter, stage: dict[str, Any]) -> None:
    assert torch.equal(logits(compressed(mixture, stage)), logits(compressed(mixture)))


def test_experts_that_no_token_chose_can_go(mixture: VLMAdapter) -> None:
    asked = "how ?"
    whole = compressed(mixture)
    ids, mask, _ = whole.inputs([[]], [mixture.chat(asked, 0)])
    found: list[Routed] = []
    with watching_routers(mixture, found.append) as tell:
        tell(Tokens.of(torch.zeros_like(ids), mask.cumsum(dim=1) - 1))
        before = logits(whole, asked, images=0)
    chosen = [set(routed.chosen.flatten().tolist()) for routed in found]
    most = max(map(len, chosen))
    assert most < EXPERTS
    kept = [sorted([*own, *(e for e in EVERY if e not in own)][:most]) for own in map(sorted, chosen)]
    fewer = compressed(mixture, {"kind": "prune_experts", "experts": kept})
    torch.testing.assert_close(logits(fewer, asked, images=0), before, atol=1e-5, rtol=1e-4)


def test_weights_are_of_those_that_are_left(mixture: VLMAdapter) -> None:
    kept = [1, 4, 6]
    fewer = keep_experts(mixture, [kept] * LAYERS)
    hidden = torch.randn(5, mixture.facts.decoder.width, generator=torch.Generator().manual_seed(0))
    for old, new in zip(blocks(mixture), blocks(fewer), strict=True):
        own, weights, chosen = new.gate(hidden)
        torch.testing.assert_close(own, old.gate(hidden)[0][:, kept])
        expected, places = own.topk(2)
        assert torch.equal(chosen, places)
        torch.testing.assert_close(weights, expected.softmax(dim=-1))


def test_the_original_is_as_it_was_and_shares_its_weights(mixture: VLMAdapter) -> None:
    before = {name: value.clone() for name, value in mixture.model.state_dict().items()}
    answers = logits(compressed(mixture))
    pruned, merged = keep_experts(mixture, [[0, 3]] * LAYERS), merge_experts(mixture, [PAIRS] * LAYERS)
    assert mixture.facts.decoder.experts == EXPERTS
    assert all(torch.equal(value, before[name]) for name, value in mixture.model.state_dict().items())
    assert torch.equal(logits(compressed(mixture)), answers)
    places = {name: value.data_ptr() for name, value in mixture.model.named_parameters()}
    for fewer in (pruned, merged):
        own = [name for name, value in fewer.model.named_parameters() if places.get(name) != value.data_ptr()]
        assert own
        assert all(".mlp.experts." in name or ".mlp.gate." in name for name in own)
        assert not any(value.requires_grad for value in fewer.model.parameters())


def test_a_merged_expert_is_the_mean_of_its_members(mixture: VLMAdapter) -> None:
    merged = merge_experts(mixture, [PAIRS] * LAYERS)
    assert merged.facts.decoder == replace(mixture.facts.decoder, experts=4, merged_from=EXPERTS)
    for old, new in zip(blocks(mixture), blocks(merged), strict=True):
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(old.experts, name)
            expected = 0.25 * weight[0::2] + 0.75 * weight[1::2]
            torch.testing.assert_close(getattr(new.experts, name), expected)
        hidden = torch.randn(5, mixture.facts.decoder.width)
        told, weights, chosen = new.gate(hidden)
        assert torch.equal(told, old.gate(hidden)[0])
        assert torch.equal(weights, old.gate(hidden)[1])
        assert torch.equal(chosen, old.gate(hidden)[2] // 2)


def test_twins_merge_into_one_of_them(mixture: VLMAdapter) -> None:
    """Where both of a pair are the same, the layer computes what it did, whatever the shares."""
    twins = keep_experts(mixture, [EVERY] * LAYERS)
    for block in blocks(twins):
        for weight in block.experts.parameters():
            weight[1::2] = weight[0::2]
    before = logits(compressed(twins))
    assert not torch.allclose(before, logits(compressed(mixture)), atol=1e-2)
    torch.testing.assert_close(logits(compressed(twins, merging(PAIRS))), before, atol=1e-5, rtol=1e-4)


STAGES: dict[str, list[dict[str, Any]]] = {
    "pruned": [listed([0, 2, 5])],
    "merged": [merging(PAIRS)],
    "pruned twice": [listed([0, 1, 2, 5]), listed([1, 2, 3])],
    "pruned and merged": [listed([0, 1, 2, 5]), merging([[[0, 1]], [[1, 0.5], [3, 0.5]], [[2, 1]]])],
    "merged twice": [merging(PAIRS), merging([[[0, 1]], [[1, 0.5], [3, 0.5]], [[2, 1]]])],
    "with fewer tokens": [{"kind": "visual_exit", "layer": 2}, listed([0, 7])],
}


@pytest.mark.parametrize("name", STAGES)
def test_exact_count_is_what_the_model_computes(mixture: VLMAdapter, name: str) -> None:
    model = compressed(mixture, *STAGES[name])
    ids, mask, pixels = model.inputs([[image(0)]], [mixture.chat("what is it ?")])
    # PyTorch counts attention, and experts, only where they are plain matrix products.
    model.adapter.model.set_experts_implementation({"text_config": "batched_mm"})
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model.prefill(ids, mask, pixels)
    model.adapter.set_decoder_attention("sdpa")
    made = plan(recipe(*STAGES[name]), mixture.facts, text_tokens=int((ids != mixture.image_token_id).sum()))
    assert made.flops["exact"] == counter.get_total_flops()
    assert made.experts == model.adapter.facts.decoder.experts
    assert {len(block.experts.gate_up_proj) for block in blocks(model.adapter)} == {made.experts}


@pytest.mark.parametrize("stage", [listed([0, 2, 5]), merging(PAIRS)], ids=lambda one: one["kind"])
def test_budgets_and_layouts_have_the_same_experts(mixture: VLMAdapter, stage: dict[str, Any]) -> None:
    wanted = recipe({"kind": "prune", "keep": [4, 12], "selector": "uniform"}, stage)
    largest = apply_recipe(mixture, wanted)
    models = [*served(largest, wanted), for_images(largest, wanted, mixture.wanted)]
    for model, keep in zip(models, (12, 4, 12), strict=True):
        alone = compressed(mixture, {"kind": "prune", "keep": keep, "selector": "uniform"}, stage)
        assert model.plan.flops == alone.plan.flops
        assert model.base_facts == alone.base_facts
        assert blocks(model.adapter)[0] is blocks(largest.adapter)[0]
        assert torch.equal(logits(model), logits(alone))


# Routers with correction biases and groups ----------------------------------------------------------------------------

SIZES: dict[str, Any] = {"hidden_size": 16, "moe_intermediate_size": 8, "num_experts_per_tok": 2, "n_shared_experts": 1}
GROUPS: dict[str, Any] = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5}
GROUPED: dict[str, Any] = {
    "glm4_moe": lambda: Glm4MoeMoE(Glm4MoeConfig(**SIZES, **GROUPS)),
    "deepseek_v3": lambda: DeepseekV3MoE(DeepseekV3Config(**SIZES, **GROUPS)),
}
KEPT = [0, 2, 3, 4, 5, 7]


class OneLayer(SimpleNamespace):
    """What stands for an adapter: a model of one layer, and its sizes."""

    @property
    def decoder_layers(self) -> Any:
        """The layer."""
        return self.model.layers


def one_layer(kind: str, facts: ModelFacts) -> Any:
    """Two groups of four experts, of random weights and biases."""
    torch.manual_seed(0)
    model, layer = nn.Module(), nn.Module()
    layer.mlp = block = GROUPED[kind]()
    for value in block.parameters():
        nn.init.normal_(value, std=0.3).requires_grad_(False)
    block.gate.e_score_correction_bias.normal_(std=0.3)
    model.layers = nn.ModuleList([layer])
    decoder = replace(facts.decoder, layers=1, width=16, experts=8, active_experts=2)
    return OneLayer(model=model, facts=replace(facts, decoder=decoder))


@pytest.mark.parametrize("kind", GROUPED)
def test_correction_biases_and_groups_go_with_their_experts(mixture: VLMAdapter, kind: str) -> None:
    whole = one_layer(kind, mixture.facts)
    fewer = keep_experts(whole, [KEPT])
    old, new = whole.decoder_layers[0].mlp, fewer.decoder_layers[0].mlp
    hidden = torch.randn(1, 20, 16)
    scores = (hidden[0] @ old.gate.weight[KEPT].T).sigmoid()
    biased = scores + old.gate.e_score_correction_bias[KEPT]
    second = biased.reshape(-1, 2, 3).topk(2).values.sum(dim=-1).argmax(dim=-1)
    chosen = biased.reshape(-1, 2, 3)[torch.arange(20), second].topk(2).indices + 3 * second[:, None]
    shares = scores.gather(1, chosen)
    weights = torch.zeros(20, 6).scatter(1, chosen, 1.5 * shares / shares.sum(dim=-1, keepdim=True))
    _, found, places = new.gate(hidden)
    torch.testing.assert_close(torch.zeros(20, 6).scatter(1, places, found), weights)
    outputs = new.shared_experts(hidden) + old.experts(hidden[0], torch.tensor(KEPT)[places], found)
    torch.testing.assert_close(new(hidden), outputs)
    assert len(old.gate.e_score_correction_bias) == 8


@pytest.mark.parametrize("kind", GROUPED)
def test_groups_of_unequal_size_are_refused(mixture: VLMAdapter, kind: str) -> None:
    with pytest.raises(InputError, match="layer 0: the router chooses by groups of 4 experts, and 1 to 2 of each"):
        keep_experts(one_layer(kind, mixture.facts), [[0, 1, 4]])

"""What selectors read of the encoder is what the model's own attention does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import image
from vtc.compressed.readings import read
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.facts.layout import Block, ImageLayout
from vtc.models.base import VLMAdapter
from vtc.recipe.needs import Needs, Reading, ReadingKind
from vtc.visual_tokens import VisualTokens

LAYERS = (0, 1, 2)


@pytest.fixture
def pixels(adapter: VLMAdapter) -> Tensor:
    return adapter.preprocess([image(0), image(1)])


def own_maps(adapter: VLMAdapter, pixels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The tower's attention maps (B, H, T, T) and the inputs of its layers, by `transformers` itself."""
    tower: Any = adapter.model.model.vision_tower
    adapter.model.set_attn_implementation({"vision_config": "eager"})
    try:
        with torch.inference_mode():
            output = tower(pixels, output_attentions=True, output_hidden_states=True)
    finally:
        adapter.model.set_attn_implementation({"vision_config": "sdpa"})
    return output.attentions, output.hidden_states


def entering(adapter: VLMAdapter, pixels: Tensor) -> list[Tensor]:
    """What enters each of the tower's layers in its own forward pass, (B, T, D)."""
    tower: Any = adapter.model.model.vision_tower
    entered: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: entered.append(given[0])) for layer in tower.encoder.layers
    ]
    try:
        with torch.inference_mode():
            tower(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return entered


def with_readings(
    adapter: VLMAdapter, pixels: Tensor, kind: ReadingKind, layers: tuple[int, ...] = LAYERS
) -> VisualTokens:
    needs = Needs(frozenset(Reading(kind, layer) for layer in layers))
    with torch.inference_mode():
        return VisionEncoder(adapter, LAYERS, needs=needs).tokens(pixels)


@pytest.mark.parametrize("kind", ["cls_attention", "received_attention", "patch_attention"])
def test_attention_is_the_models_own(adapter: VLMAdapter, pixels: Tensor, kind: ReadingKind) -> None:
    maps, _ = own_maps(adapter, pixels)
    tokens = with_readings(adapter, pixels, kind)
    for layer in LAYERS:
        mean = maps[layer].mean(dim=1)
        expected = {
            "cls_attention": mean[:, 0, 1:],
            "received_attention": mean.mean(dim=1)[:, 1:],
            "patch_attention": mean[:, 1:, 1:],
        }[kind]
        torch.testing.assert_close(tokens.readings[Reading(kind, layer)], expected, atol=1e-6, rtol=1e-5)


def test_received_attention_of_a_tower_without_a_cls_token(siglip: VLMAdapter) -> None:
    pixels = siglip.preprocess([image(0), image(1)])
    maps, _ = own_maps(siglip, pixels)
    received = with_readings(siglip, pixels, "received_attention").readings[Reading("received_attention", 1)]
    torch.testing.assert_close(received, maps[1].mean(dim=(1, 2)), atol=1e-6, rtol=1e-5)


def test_logits_are_the_attention_before_the_softmax(adapter: VLMAdapter, pixels: Tensor) -> None:
    """Of one head, so that the mean over heads does not hide it: logits differ from log attention by a constant."""
    _, inputs = own_maps(adapter, pixels)
    one_head = read(adapter, Reading("one_head_cls_attention", 1), inputs[1])
    query, key = adapter.encoder_queries(1, inputs[1]), adapter.encoder_keys(1, inputs[1])
    scores = (query[:, :1] @ key.transpose(1, 2)) / query.shape[-1] ** 0.5
    torch.testing.assert_close(one_head, torch.softmax(scores, dim=-1)[:, 0, 1:])
    heads = adapter.facts.encoder.heads
    logits = scores.new_zeros(2, 16)
    for head in range(heads):
        part = slice(head * query.shape[-1] // heads, (head + 1) * query.shape[-1] // heads)
        width = part.stop - part.start
        logits += (query[:, :1, part] @ key[:, 1:, part].transpose(1, 2))[:, 0] / width**0.5 / heads
    torch.testing.assert_close(read(adapter, Reading("cls_logits", 1), inputs[1]), logits, atol=1e-5, rtol=1e-4)


def test_keys_are_those_of_the_patches(adapter: VLMAdapter, pixels: Tensor) -> None:
    tokens = with_readings(adapter, pixels, "full_keys", (1,)), with_readings(adapter, pixels, "keys", (1,))
    full, mean = tokens[0].readings[Reading("full_keys", 1)], tokens[1].readings[Reading("keys", 1)]
    _, inputs = own_maps(adapter, pixels)
    torch.testing.assert_close(full, adapter.encoder_keys(1, inputs[1])[:, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mean, full.reshape(2, 16, adapter.facts.encoder.heads, -1).mean(dim=2))


def test_states_are_what_enters_the_layer(adapter: VLMAdapter, pixels: Tensor) -> None:
    entered = entering(adapter, pixels)
    states = with_readings(adapter, pixels, "hidden_states")
    summary = with_readings(adapter, pixels, "cls_state")
    for layer in LAYERS:
        torch.testing.assert_close(states.readings[Reading("hidden_states", layer)], entered[layer][:, 1:])
        torch.testing.assert_close(summary.readings[Reading("cls_state", layer)], entered[layer][:, 0])


def test_states_after_the_last_layer_that_runs_are_the_features(each_adapter: VLMAdapter) -> None:
    needs = Needs(frozenset({Reading("hidden_states", 2)}))
    with torch.inference_mode():
        tokens = VisionEncoder(each_adapter, (0, 1), needs=needs).tokens(each_adapter.preprocess([image(0)]))
    torch.testing.assert_close(tokens.readings[Reading("hidden_states", 2)], tokens.features)


def test_states_of_a_tower_without_a_cls_token_are_those_of_all_patches(siglip: VLMAdapter) -> None:
    pixels = siglip.preprocess([image(0), image(1)])
    states = with_readings(siglip, pixels, "hidden_states", (1,)).readings[Reading("hidden_states", 1)]
    torch.testing.assert_close(states, entering(siglip, pixels)[1])


def test_states_of_several_views_are_laid_out_as_the_features_and_of_cls_tokens_the_mean(adapter: VLMAdapter) -> None:
    crops = Block((4, 6), views=(1, 2), offset=(0, 1))
    tiled = adapter.with_layout(ImageLayout((56, 112), (4, 4), (Block((4, 4)), crops)))
    pixels = torch.stack([adapter.preprocess([image(3 * number + view) for view in range(3)]) for number in range(2)])
    entered = entering(adapter, pixels.flatten(0, 1))[1].unflatten(0, (2, 3))
    tokens = with_readings(tiled, pixels, "hidden_states", (1,))
    states = tokens.readings[Reading("hidden_states", 1)]
    assert states.shape == tokens.features.shape
    picture = torch.cat([entered[:, view, 1:].unflatten(1, (4, 4)) for view in (1, 2)], dim=2)
    torch.testing.assert_close(states[:, :16], entered[:, 0, 1:])
    torch.testing.assert_close(states[:, 16:], picture[:, :, 1:7].flatten(1, 2))
    summary = with_readings(tiled, pixels, "cls_state", (1,)).readings[Reading("cls_state", 1)]
    torch.testing.assert_close(summary, entered[:, :, 0].mean(dim=1))


def test_the_layer_after_the_features_reads_the_features(adapter: VLMAdapter, pixels: Tensor) -> None:
    tokens = with_readings(adapter, pixels, "full_keys", (1,))
    layers = VisionEncoder(adapter, (0,), needs=Needs(frozenset({Reading("full_keys", 1)})))
    with torch.inference_mode():
        torch.testing.assert_close(
            layers.tokens(pixels).readings[Reading("full_keys", 1)], tokens.readings[Reading("full_keys", 1)]
        )


def test_readings_follow_the_tokens_that_are_kept(adapter: VLMAdapter, pixels: Tensor) -> None:
    tokens = with_readings(adapter, pixels, "patch_attention", (1,))
    chosen = torch.tensor([[0, 5, 9], [3, 4, 15]])
    kept = tokens.keep(chosen).readings[Reading("patch_attention", 1)]
    for row in range(2):
        places = chosen[row]
        assert torch.equal(kept[row], tokens.readings[Reading("patch_attention", 1)][row][places][:, places])

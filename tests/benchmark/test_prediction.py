"""Weights that a plan's graphs hold, counted from sizes alone."""

from __future__ import annotations

from dataclasses import replace

from tests.sizes import SMALL
from tests.tiny import recipe
from vtc.facts.layout import Block, ImageLayout
from vtc.facts.model import ModelFacts
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.plan.costs import weight_count


def weights(facts: ModelFacts) -> int:
    return weight_count(plan(recipe(), facts), facts)


def test_weights_are_those_of_the_model(adapter: VLMAdapter) -> None:
    layers = [f"layers.{number}." for number in range(adapter.facts.encoder.feature_layer + 1, 99)]
    matrices = sum(
        parameter.numel()
        for name, parameter in adapter.model.named_parameters()
        if parameter.dim() > 1 and not ("vision" in name and any(layer in name for layer in layers))
    )
    assert weights(adapter.facts) == matrices


def test_more_views_and_tokens_are_no_more_weights() -> None:
    grid = (16, 16)
    tiles = ImageLayout((448, 448), grid, (Block(grid), Block((28, 32), views=(2, 2), offset=(2, 0), line_ends=True)))
    assert weights(replace(SMALL, layout=tiles)) == weights(SMALL)
    merged = ImageLayout((224, 224), (8, 8), (Block((8, 8)),))
    assert weights(replace(SMALL, layout=merged, encoder=replace(SMALL.encoder, merge=2))) == weights(SMALL)


def test_gates_and_experts_are_weights_that_are_held() -> None:
    encoder, decoder = SMALL.encoder, SMALL.decoder
    gated = replace(SMALL, encoder=replace(encoder, gated_ffn=True))
    assert weights(gated) - weights(SMALL) == encoder.layers * encoder.width * encoder.ffn
    experts = replace(SMALL, decoder=replace(decoder, experts=8, active_experts=2))
    more = 7 * 3 * decoder.width * decoder.ffn + 8 * decoder.width
    assert weights(experts) - weights(SMALL) == decoder.layers * more

"""FLOPs and KV bytes: the exact count equals what PyTorch counts, the papers' formulas equal a calculation by hand."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.sizes import LLAVA_15, SMALL
from tests.tiny import RECIPES, compressed, image, recipe
from vtc.facts.model import ModelFacts
from vtc.models.base import VLMAdapter
from vtc.plan import TokenPlan, plan
from vtc.plan.flops import encoder_flops, reading_width
from vtc.recipe.selectors import ENCODER_SELECTORS


def counted(adapter: VLMAdapter, stages: list[dict[str, Any]]) -> tuple[int, TokenPlan]:
    """What PyTorch counts in a prefill, and the plan of it."""
    model = compressed(adapter, *stages)
    prompt = adapter.chat("what digit is red ?")
    text_tokens = len(adapter.tokenize([prompt], [1], 1)[0][0]) - 1
    # PyTorch counts attention only where it is plain matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.generate([[image(0)]], [prompt], max_new_tokens=1)
    return counter.get_total_flops(), plan(recipe(*stages), adapter.facts, text_tokens=text_tokens)


COUNTS_ALL_TEXT = ("cut", "cuts", "learnpruner", "text_aware", "filter_and_text", "projected_and_cut")
"""How much of the text stands after the image and ranks its tokens, a plan cannot know: it counts all of it."""
LEAVES_OUT = "merged_in_the_decoder"
"""Of selectors inside the decoder a plan counts attention, and not what they merge."""


@pytest.mark.parametrize("name", [name for name in RECIPES if name != LEAVES_OUT])
def test_exact_count_is_what_the_model_computes(name: str, adapter: VLMAdapter) -> None:
    found, expected = counted(adapter, RECIPES[name])
    surplus = expected.flops["exact"] - found
    assert 0 < surplus < 0.05 * found if name in COUNTS_ALL_TEXT else surplus == 0


@pytest.mark.parametrize(
    "name", [n for n, e in ENCODER_SELECTORS.items() if not (e.text_aware or n in ("evs", "learned"))]
)
def test_exact_count_covers_what_a_selector_multiplies(name: str, adapter: VLMAdapter) -> None:
    found, expected = counted(adapter, [{"kind": "prune", "keep": 6, "selector": name}])
    assert expected.flops["exact"] == found


@pytest.mark.parametrize("facts", [LLAVA_15, SMALL])
def test_states_that_are_read_cost_nothing(facts: ModelFacts) -> None:
    grid, layers = facts.layout.view_grid, range(facts.encoder.feature_layer + 1)
    without = encoder_flops(facts.encoder, grid, layers)
    assert encoder_flops(facts.encoder, grid, layers, ["hidden_states", "cls_state"]) == without
    assert encoder_flops(facts.encoder, grid, layers, ["full_keys"]) > without
    assert reading_width(facts.encoder, "hidden_states") == facts.encoder.width
    assert reading_width(facts.encoder, "cls_state") == 0


def test_papers_formulas_on_llava() -> None:
    made = plan(recipe(), LLAVA_15, text_tokens=24)
    n, d, m = 600, 4096, 11008
    assert made.flops["fastv"] == 32 * (4 * n * d * d + 2 * n * n * d + 2 * n * d * m)
    assert made.flops["pyramiddrop"] == 32 * (4 * n * d * d + 2 * n * n * d + 3 * n * d * m)


def test_kv_bytes_count_what_each_layer_sees() -> None:
    stages = (
        {"kind": "prune", "keep": 10, "selector": "random"},
        {"kind": "drop_layers", "layers": [7]},
        {"kind": "drop_layers", "layers": [1], "visual_only": True},
        {"kind": "visual_exit", "layer": 4},
    )
    made = plan(recipe(*stages), SMALL, text_tokens=5, bytes_per_value=4)
    all_layers, text_layers = 3, 4
    assert made.kv_bytes == (all_layers * 15 + text_layers * 5) * 2 * 2 * 32 * 4

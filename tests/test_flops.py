"""FLOPs and KV bytes: the exact count equals what PyTorch counts, the papers' formulas equal a calculation by hand."""

from __future__ import annotations

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.sizes import LLAVA_15, SMALL
from tests.tiny import RECIPES, compressed, image, recipe
from vtc.models.base import VLMAdapter
from vtc.plan import plan


@pytest.mark.parametrize("name", RECIPES)
def test_exact_count_is_what_the_model_computes(name: str, adapter: VLMAdapter) -> None:
    model = compressed(adapter, *RECIPES[name])
    prompt = adapter.chat("what digit is red ?")
    text_tokens = len(adapter.tokenize([prompt], [1], 1)[0][0]) - 1
    # PyTorch counts attention only where it is plain matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.generate([[image(0)]], [prompt], max_new_tokens=1)
    expected = plan(recipe(*RECIPES[name]), adapter.facts, text_tokens=text_tokens)
    # How much of the text stands behind the image and ranks its tokens, a plan cannot know: it counts all of it.
    surplus = expected.flops["exact"] - counter.get_total_flops()
    in_front = any(stage.get("selector") is None for stage in RECIPES[name] if stage["kind"] == "prune_in_decoder")
    assert 0 < surplus < expected.flops_parts["selection"] if in_front or name == "cuts" else surplus == 0


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

"""What a model takes: each term counted by hand, on a model of the reference VLM's shape."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sizes import SMALL
from tests.tiny import recipe
from vtc.plan import plan
from vtc.plan.costs import HOLES, LIBRARIES, LOADING, START, Costs, Speed, Use, Weights

WEIGHTS = Weights(numbers=1000, largest=100, stored="bfloat16", bytes=2000)
SPEED = Speed(flops=1e9, moved=1e6, hashed=1e3)
WHOLE = plan(recipe(), SMALL)
PRUNED = plan(recipe({"kind": "prune", "keep": 64, "selector": "uniform"}), SMALL)
COSTS = Costs(SMALL, WEIGHTS, speed=SPEED)


def test_weights_of_another_type_are_copied() -> None:
    need = COSTS.loaded()
    assert (need.libraries, need.work, need.mapped, need.gpu, need.disk) == (LIBRARIES, 4000, 0, 0, 0)
    assert need.seconds == START + 2000 / 1e3 + LOADING * 4000 / 1e6


def test_weights_of_the_files_own_type_are_the_files() -> None:
    need = replace(COSTS, dtype="bfloat16").loaded()
    assert (need.work, need.mapped) == (0, 2000)
    assert need.seconds == START + 2000 / 1e3 + 2000 / 1e6


def test_on_a_gpu_all_is_there() -> None:
    costs = replace(COSTS, dtype="bfloat16", on_gpu=True)
    need = Use("it").need(costs, PRUNED, WHOLE)
    assert (need.work, need.mapped, need.gpu) == (0, 0, 2000 + costs.asked(WHOLE))


def test_a_prompt_takes_its_cache_and_the_largest_layer() -> None:
    tokens, layer = 32 + 256, 3 * 384 + 6 * 128
    cache = 8 * 2 * 2 * 32 * tokens * 4
    assert COSTS.asked(WHOLE) == int(HOLES * (cache + tokens * (layer + tokens) * 4))
    assert COSTS.asked(WHOLE, prompts=5) == pytest.approx(5 * COSTS.asked(WHOLE))


def test_where_few_tokens_enter_the_decoder_the_encoder_takes_most() -> None:
    few = plan(recipe({"kind": "prune", "keep": 1, "selector": "uniform"}), SMALL, text_tokens=1)
    assert COSTS.asked(few) == int(HOLES * 257 * (2 * 512 + 6 * 128) * 4)


def test_logits_count_where_they_are_more() -> None:
    more = COSTS.asked(WHOLE, scored=10_000) - COSTS.asked(WHOLE, scored=9_000)
    assert more == pytest.approx(HOLES * 4 * 460 * 1000)


def test_a_use_takes_what_its_largest_plan_does() -> None:
    both, compressed = (Use("it", prompts=3, scored=2, original=original) for original in (True, False))
    assert both.need(COSTS, PRUNED, WHOLE) == both.need(COSTS, WHOLE, WHOLE)
    assert (
        compressed.need(COSTS, PRUNED, WHOLE).work
        == 4000 + COSTS.asked(PRUNED, 3, 2)
        < both.need(COSTS, WHOLE, WHOLE).work
    )


def test_times_are_operations_and_bytes_by_speed() -> None:
    assert COSTS.prefill(WHOLE, 3) == 3 * WHOLE.flops["exact"] / 1e9
    matrices = 8 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384) + 128 * 460
    attention = 8 * 2 * 128  # of a token to itself
    assert COSTS.decode(2) == pytest.approx(2 * (matrices + attention) * 4 / 1e6)


def test_without_a_measured_speed_no_time_is_told() -> None:
    costs = replace(COSTS, speed=None)
    assert costs.loaded().seconds is costs.prefill(WHOLE) is costs.decode(1) is None
    assert costs.more(COSTS.loaded(), seconds=costs.decode(1)).seconds is None

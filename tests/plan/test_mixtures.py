"""Mixtures of experts: what tokens pass, and what graphs of standard operators compute, are both counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exporters.needs import expert_bytes, graph_bytes, run_need
from exporters.precision import precision
from tests.sizes import SMALL
from tests.tiny import recipe
from vtc.plan import plan
from vtc.plan.costs import HOLES, Costs, Speed, Weights, expert_count

MIXTURE = replace(SMALL, decoder=replace(SMALL.decoder, experts=16, active_experts=2))
COSTS = Costs(MIXTURE, Weights(numbers=1000, largest=100, stored="float32", bytes=4000), speed=Speed(1e9, 1e6, 1e3))
PLAN = plan(recipe(), MIXTURE)
TOKENS = 32 + 256


def test_a_plan_counts_the_experts_that_tokens_pass_and_all() -> None:
    assert "executed" not in plan(recipe(), SMALL).flops
    assert PLAN.flops["routed"] == PLAN.flops["exact"] == sum(PLAN.flops_parts.values())
    idle = 8 * TOKENS * 2 * (16 - 2) * 3 * 128 * 384
    assert PLAN.executed == PLAN.flops["executed"] == PLAN.flops["exact"] + idle
    assert plan(recipe(), SMALL).executed == plan(recipe(), SMALL).flops["exact"]


def test_needs_of_graphs_count_every_expert() -> None:
    assert COSTS.prefill(PLAN) == PLAN.flops["routed"] / 1e9
    assert COSTS.prefill(PLAN, every_expert=True) == PLAN.flops["executed"] / 1e9
    idle = TOKENS * (16 - 2) * 3 * 384 * 4
    more = COSTS.asked(PLAN, every_expert=True) - COSTS.asked(PLAN)
    assert more == pytest.approx(HOLES * idle, abs=1)


def test_experts_stay_where_they_lie() -> None:
    experts = expert_count(PLAN, MIXTURE.decoder)
    assert experts == 8 * 16 * 3 * 128 * 384
    assert expert_count(PLAN, SMALL.decoder) == 0
    need = run_need(precision("fp32"), PLAN, COSTS, 0)
    assert need.mapped == 4 * (experts + 460 * 128)
    rest = graph_bytes(precision("fp32"), PLAN, COSTS) - need.mapped
    assert need.work == rest + COSTS.asked(PLAN, every_expert=True)


@pytest.mark.parametrize(("name", "each"), [("q4", 0.5 + (4 + 0.5 / 8) / 32), ("int8", 1 + (4 + 1 / 8) / 32)])
def test_experts_in_few_bits_have_scales_and_the_zero_points_of_a_layer(name: str, each: float) -> None:
    experts, one = expert_count(PLAN, MIXTURE.decoder), precision(name)
    assert expert_bytes(one, PLAN, COSTS) == int(each * experts)
    whole = graph_bytes(precision("fp32"), PLAN, COSTS) - 4 * experts
    assert 0 < graph_bytes(one, PLAN, COSTS) - int(each * experts) < whole / 3
    need = run_need(one, PLAN, COSTS, 0)
    assert need.mapped == pytest.approx(each * experts + 460 * 128, rel=0.05)
    rest = graph_bytes(one, PLAN, COSTS) - need.mapped
    # A layer's experts are made floats while they are computed.
    assert need.work - rest - COSTS.asked(PLAN, every_expert=True) == 4 * experts // 8 * 4 // 3


def test_experts_stay_whole_for_engines_and_where_blocks_do_not_divide() -> None:
    experts = expert_count(PLAN, MIXTURE.decoder)
    assert expert_bytes(precision("q4f16"), PLAN, COSTS) == 2 * experts
    odd = replace(MIXTURE, decoder=replace(MIXTURE.decoder, ffn=24))
    uneven = plan(recipe(), odd)
    costs = replace(COSTS, facts=odd)
    assert expert_bytes(precision("q4"), uneven, costs) == 4 * expert_count(uneven, odd.decoder)


def test_a_step_reads_the_experts_that_its_token_passes() -> None:
    dense = Costs(SMALL, COSTS.weights, speed=COSTS.speed)
    second, router = 8 * 3 * 128 * 384, 8 * 128 * 16
    more = (COSTS.decode(1) or 0.0) - (dense.decode(1) or 0.0)
    assert more == pytest.approx((second + router) * 4 / 1e6)

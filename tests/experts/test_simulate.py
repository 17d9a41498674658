"""Predicted step times: by hand, and constants found again from runs that follow them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.experts.uses import synthetic_routes
from vtc.errors import InputError
from vtc.experts.parallel import ParallelRun
from vtc.experts.placement import place_contiguous, place_shuffled
from vtc.experts.simulate import (
    Machine,
    fit_machine,
    simulate_decode,
    simulate_prefill,
    simulate_step,
    token_bytes,
)
from vtc.experts.statistics import Routes
from vtc.experts.traffic import Replay, homes_by_sample, replay

MACHINE = Machine(1e-6, 1e-5, 1e9, 1e-4, 1e-3, 1e-5, 1e-6)


def test_terms_by_hand() -> None:
    """Device 0 sends two tokens to device 1, which answers five of eight calls."""
    routes = Routes(np.array([[[0, 1], [0, 2], [2, 3], [2, 3]]]), np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
    counted = replay(routes, place_contiguous(1, 4, 2), homes_by_sample(routes, 2))
    step = simulate_step(counted, MACHINE, bytes_of_token=1000)
    assert (step.calls, step.experts) == (pytest.approx(5e-6), pytest.approx(2e-5))
    assert (step.transfer, step.messages) == (pytest.approx(1e-6), pytest.approx(1e-4))
    assert (step.layers, step.tokens) == (pytest.approx(1e-3), pytest.approx(3e-5))
    assert step.shared_calls == pytest.approx(8e-6)
    assert step.to_json()["simulated"] is True
    assert step.to_json()["seconds"] == pytest.approx(1.164e-3)


def test_a_data_sheet() -> None:
    machine = Machine.from_data_sheet(
        width=2048, inner=768, weight_bytes=2, flops=1e14, memory=1e12, link=1.25e9, message=1e-5
    )
    assert machine.seconds_per_call == pytest.approx(6 * 2048 * 768 / 1e14)
    assert machine.seconds_per_expert == pytest.approx(3 * 2048 * 768 * 2 / 1e12)
    assert token_bytes(2048, 8, size=2) == 2 * (4096 + 16)


def test_prefill_and_decoding() -> None:
    """Twice the prompts are twice the calls of prefill; decoding has one text token of each."""
    routes = synthetic_routes(layers=1, experts=8, active=2, prompts=8)
    placement, homes = place_contiguous(1, 8, 2), homes_by_sample(routes, 2)
    calls = Machine(1.0, 0, 1, 0, 0)
    two, four = (simulate_prefill(routes, placement, homes, calls, 0, prompts).calls for prompts in (2, 4))
    assert four == pytest.approx(2 * two, rel=0.1)
    assert two >= 2 * 32 * 2 / 2
    decode = simulate_decode(routes, placement, homes, calls, 0, prompts=8).calls
    last = np.arange(31, 256, 32)
    counted = replay(Routes(routes.chosen[:, last], routes.modality[last], routes.sample[last]), placement, homes[last])
    assert decode == counted.calls.max()
    with pytest.raises(InputError, match="8 prompts with such tokens; 9 at once"):
        simulate_decode(routes, placement, homes, calls, 0, prompts=9)


def followed(counted: Replay) -> ParallelRun:
    """A run that takes exactly as long as MACHINE says."""
    step = simulate_step(counted, MACHINE, 500)
    phases = np.zeros((3, 1, 2, 3))
    phases[..., 1] = step.calls + step.experts + step.shared_calls
    seconds = np.full(3, step.total)
    return ParallelRun(torch.empty(0), seconds, phases, counted.sent, counted.calls, counted.sent)


def test_constants_are_found_again() -> None:
    runs = []
    for seed in range(8):
        routes = synthetic_routes(layers=1, experts=8, active=1, prompts=2 + 3 * seed, text=seed + 1, seed=seed)
        counted = replay(routes, place_shuffled(1, 8, 2, seed), homes_by_sample(routes, 2))
        runs.append((counted, followed(counted)))
    found = fit_machine(runs[:6], 500)
    assert found.seconds_per_call == pytest.approx(MACHINE.seconds_per_call, rel=1e-3)
    assert found.seconds_per_shared_call == pytest.approx(MACHINE.seconds_per_shared_call, rel=1e-3)
    assert found.bytes_per_second == pytest.approx(MACHINE.bytes_per_second, rel=1e-3)
    for counted, run in runs[6:]:
        assert simulate_step(counted, found, 500).total == pytest.approx(run.seconds[0], rel=1e-6)
    with pytest.raises(InputError, match="2 runs are too few"):
        fit_machine(runs[:2], 500)

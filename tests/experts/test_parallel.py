"""Expert parallelism with real processes: the output, the traffic, and what happens when a process dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from multiprocessing import active_children

import numpy as np
import pytest
import torch

from tests.experts.uses import synthetic_routes, use_of
from vtc.errors import InputError, VtcError
from vtc.experts.parallel import run_parallel
from vtc.experts.placement import place_contiguous, place_eplb, place_shuffled
from vtc.experts.placement_files import expert_order
from vtc.experts.simulate import token_bytes
from vtc.experts.traffic import homes_by_modality, homes_by_sample, replay
from vtc.experts.workload import Case, ExpertLayer, Workload, run_alone

LAYERS, EXPERTS, ACTIVE, WIDTH, INNER = 2, 8, 2, 16, 8
ROUTES = synthetic_routes(LAYERS, EXPERTS, ACTIVE, prompts=4)
CASES = [
    Case(place_contiguous(LAYERS, EXPERTS, 2), homes_by_sample(ROUTES, 2)),
    Case(place_eplb(use_of(ROUTES, EXPERTS).chosen.sum(axis=1), 2, copies=2), homes_by_modality(ROUTES, 2)),
]


def workload() -> Workload:
    generator = torch.Generator().manual_seed(0)
    tokens = ROUTES.chosen.shape[1]
    layers = [
        ExpertLayer(
            torch.randn(EXPERTS, 2 * INNER, WIDTH, generator=generator) / WIDTH**0.5,
            torch.randn(EXPERTS, WIDTH, INNER, generator=generator) / INNER**0.5,
        )
        for _ in range(LAYERS)
    ]
    weight = torch.rand(LAYERS, tokens, ACTIVE, generator=generator).softmax(dim=-1)
    return Workload(layers, torch.randn(tokens, WIDTH, generator=generator), ROUTES.chosen, weight)


def test_one_process_does_what_the_formula_says() -> None:
    work = workload()
    expected = work.hidden.clone()
    for layer, chosen, weight in zip(work.layers, work.chosen, work.weight, strict=True):
        gate, up = torch.einsum("tkfd,td->tkf", layer.gate_up[chosen], expected).chunk(2, dim=-1)
        made = torch.einsum("tkdf,tkf->tkd", layer.down[chosen], gate * torch.sigmoid(gate) * up)
        expected = expected + (made * weight[..., None]).sum(dim=1)
    torch.testing.assert_close(run_alone(work), expected, rtol=1e-5, atol=1e-5)


def test_experts_in_another_order_compute_the_same() -> None:
    work = workload()
    order = expert_order(place_shuffled(LAYERS, EXPERTS, 2, seed=1))
    layers = [ExpertLayer(one.gate_up[of], one.down[of]) for one, of in zip(work.layers, order, strict=True)]
    chosen = np.argsort(order, axis=1)[np.arange(LAYERS)[:, None, None], work.chosen]
    assert (chosen != work.chosen).any()
    torch.testing.assert_close(run_alone(replace(work, layers=layers, chosen=chosen)), run_alone(work))


@pytest.mark.slow
def test_processes_compute_the_same_and_send_what_was_counted() -> None:
    work = workload()
    expected = run_alone(work)
    for case, run in zip(CASES, run_parallel(work, CASES, repeats=2), strict=True):
        torch.testing.assert_close(run.output, expected, rtol=1e-5, atol=1e-5)
        counted = replay(ROUTES, case.placement, case.homes)
        np.testing.assert_array_equal(run.sent, counted.sent)
        np.testing.assert_array_equal(run.calls, counted.calls)
        both_ways = (counted.sent + counted.sent.transpose(0, 2, 1)).sum(axis=(1, 2)) / 2
        np.testing.assert_array_equal(run.bytes.sum(axis=(1, 2)), both_ways * token_bytes(WIDTH, ACTIVE))
        assert run.seconds.shape == (2,)
        assert run.phases.shape == (2, LAYERS, 2, 3)
        assert (run.phases.sum(axis=(1, 3)).max(axis=1) <= run.seconds).all()
    assert not active_children()


def test_a_process_that_dies_ends_the_run() -> None:
    def kill_one() -> None:
        while len(children := active_children()) < 2:
            time.sleep(0.02)
        assert children[0].pid is not None
        os.kill(children[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with pytest.raises(VtcError, match=r"process [01] of the expert-parallel run was ended \(SIGKILL\)"):
        run_parallel(workload(), CASES[:1])
    killer.join(timeout=5)
    assert not active_children()


def test_what_does_not_fit_is_refused() -> None:
    work = workload()
    with pytest.raises(InputError, match="the same number of devices"):
        run_parallel(work, [CASES[0], Case(place_contiguous(LAYERS, EXPERTS, 4), CASES[0].homes)])
    with pytest.raises(InputError, match="placement has 2 layers of 4 experts"):
        run_parallel(work, [Case(place_contiguous(LAYERS, 4, 2), CASES[0].homes)])
    with pytest.raises(InputError, match="a home below 2"):
        run_parallel(work, [Case(CASES[0].placement, CASES[0].homes + 1)])
    with pytest.raises(InputError, match="a hidden state"):
        run_parallel(replace(work, hidden=work.hidden[1:]), CASES)

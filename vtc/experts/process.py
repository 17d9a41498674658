"""What one process of an expert-parallel run does (PyTorch, gloo).

In each layer it sends each of its tokens once to every other process that has an expert which the token calls, with the
calls' slots and weights; it computes what was sent to it, and sends back one sum for each token.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vtc.experts.statistics import Floats
from vtc.experts.traffic import slots_of_calls
from vtc.experts.workload import Case, ExpertLayer, Workload, answer


def run_process(
    me: int, work: Workload, cases: Sequence[Case], repeats: int, threads: int, timeout: float, scratch: Path
) -> None:
    """Take part as number `me`, and leave ``CASE-ME.npz`` in `scratch` for each case."""
    torch.set_num_threads(threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store, wait = f"file://{scratch}/rendezvous", timedelta(seconds=timeout)
    dist.init_process_group("gloo", store, wait, world_size=cases[0].placement.devices, rank=me)
    try:
        with torch.inference_mode():
            shares = [_Share(work, case, me) for case in cases]
            for _ in range(1 + repeats):
                for share in shares:
                    share.step()
        for number, share in enumerate(shares):
            np.savez(scratch / f"{number}-{me}.npz", **share.result())  # type: ignore[arg-type]
    finally:
        dist.destroy_process_group()


class _Share:
    """What one process has under a placement: its tokens, its experts, and its record."""

    def __init__(self, work: Workload, case: Case, me: int) -> None:
        own = slice(me * case.placement.room, (me + 1) * case.placement.room)
        slots = torch.from_numpy(case.placement.expert_of_slot[:, own])
        self.experts = [
            ExpertLayer(layer.gate_up[of], layer.down[of]) for layer, of in zip(work.layers, slots, strict=True)
        ]
        self.mine = torch.from_numpy(np.flatnonzero(case.homes == me))
        self.tokens = work.hidden[self.mine]
        self.weight = work.weight[:, self.mine]
        self.sendings = [_plan(work, case, layer, me) for layer in range(len(work.layers))]
        self.hidden = self.tokens
        self.calls = np.zeros(len(work.layers), np.int64)
        self.received, self.bytes = np.zeros((2, len(work.layers), case.placement.devices), np.int64)
        self.phases: list[Floats] = []
        self.seconds: list[float] = []

    def step(self) -> None:
        """All layers once; nothing is carried over from the step before."""
        dist.barrier()
        start = time.perf_counter()
        self.hidden = self.tokens
        self.phases.append(np.array([self._layer(layer) for layer in range(len(self.experts))]))
        self.seconds.append(time.perf_counter() - start)

    def _layer(self, layer: int) -> tuple[float, float, float]:
        sending, experts, width = self.sendings[layer], self.experts[layer], self.hidden.shape[1]
        start = time.perf_counter()
        counts = torch.tensor(sending.counts)
        incoming = torch.empty_like(counts)
        dist.all_to_all_single(incoming, counts)
        arriving = incoming.tolist()
        # Slots are small integers, which a float holds exactly: one message for each pair of processes.
        out = torch.cat([self.hidden[sending.rows], sending.weight, sending.slots.to(self.hidden)], dim=1)
        received = out.new_empty(sum(arriving), out.shape[1])
        dist.all_to_all_single(received, out, arriving, sending.counts)
        dispatched = time.perf_counter()
        active = sending.slots.shape[1]
        tokens = torch.cat([self.hidden, received[:, :width]])
        weight = torch.cat([self.weight[layer], received[:, width:-active]])
        slots = torch.cat([sending.own_slots, received[:, -active:].long()])
        made, answers = answer(experts, tokens, slots, weight).split_with_sizes([len(self.hidden), len(received)])
        computed = time.perf_counter()
        returned = answers.new_empty(len(sending.rows), width)
        dist.all_to_all_single(returned, answers, sending.counts, arriving)
        self.hidden = (self.hidden + made).index_add_(0, sending.rows, returned)
        combined = time.perf_counter()
        self.calls[layer] = int((slots >= 0).sum())
        self.received[layer] = arriving
        answered = np.array(sending.counts) * returned[:1].nbytes
        self.bytes[layer] = self.received[layer] * received[:1].nbytes + answered
        return dispatched - start, computed - dispatched, combined - computed

    def result(self) -> dict[str, np.ndarray]:
        """Arrays to be handed over; the first step, which was not timed, is left out."""
        return {
            "rows": self.mine.numpy(),
            "output": self.hidden.numpy(),
            "seconds": np.array(self.seconds[1:]),
            "phases": np.stack(self.phases[1:]),
            "received": self.received,
            "calls": self.calls,
            "bytes": self.bytes,
        }


class _Sending(NamedTuple):
    """What a process sends in one layer: its own tokens, by the process that they go to."""

    rows: Tensor
    """Of its own hidden states (S,), ordered by process."""
    counts: list[int]
    slots: Tensor
    """(S, k): slot of the other process that a call wants; -1 where it is none of its."""
    weight: Tensor
    own_slots: Tensor
    """(N, k) of all its tokens: its own slots, else -1."""


def _plan(work: Workload, case: Case, layer: int, me: int) -> _Sending:
    """Look up where each call of this process's tokens is answered; servers do so with a table on the device."""
    mine = np.flatnonzero(case.homes == me)
    # Turns of a home's calls to copies depend on that home's tokens alone.
    slots = slots_of_calls(case.placement, layer, work.chosen[layer][mine], case.homes[mine])
    room, weight = case.placement.room, work.weight[layer][mine]
    there = [np.where(slots // room == device, slots % room, -1) for device in range(case.placement.devices)]
    rows = [np.flatnonzero((at >= 0).any(axis=1)) if device != me else mine[:0] for device, at in enumerate(there)]
    all_rows = np.concatenate(rows)
    wanted = np.concatenate([at[which] for at, which in zip(there, rows, strict=True)])
    counts = [len(which) for which in rows]
    return _Sending(
        torch.from_numpy(all_rows), counts, torch.from_numpy(wanted), weight[all_rows], torch.from_numpy(there[me])
    )

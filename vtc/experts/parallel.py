"""Expert parallelism for real: processes of this machine that own experts and send each other tokens (PyTorch, gloo).

What is sent is counted where it arrives, and every phase is timed. The work of a layer: a process sends each of its
tokens once to every other process that has an expert which the token calls, with the calls' slots and weights; it
computes what was sent to it, and sends back one sum for each token.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from vtc.errors import InputError, VtcError
from vtc.experts.placement import Placement
from vtc.experts.statistics import Floats, Numbers
from vtc.experts.traffic import slots_of_calls

PHASES = ("dispatch", "compute", "combine")


class ExpertLayer(NamedTuple):
    """Weights of E experts: `gate_up` (E, 2F, D), gate above up, and `down` (E, D, F)."""

    gate_up: Tensor
    down: Tensor

    def expert(self, index: int, tokens: Tensor) -> Tensor:
        """What an expert makes of tokens (N, D)."""
        gate, up = (tokens @ self.gate_up[index].T).chunk(2, dim=-1)
        made: Tensor = (torch.nn.functional.silu(gate) * up) @ self.down[index].T
        return made


@dataclass(frozen=True)
class Workload:
    """Tokens on their way through L layers of experts, each of which adds to the hidden state.

    Attributes
    ----------
    layers : sequence of ExpertLayer
    hidden : Tensor of shape (T, D), float32
    chosen : array of shape (L, T, k), int64
        Experts of each token.
    weight : Tensor of shape (L, T, k), float32
        Their weights.
    """

    layers: Sequence[ExpertLayer]
    hidden: Tensor
    chosen: Numbers
    weight: Tensor


class Case(NamedTuple):
    """A placement, and the home (T,) of each token under it."""

    placement: Placement
    homes: Numbers


@dataclass(frozen=True)
class ParallelRun:
    """What processes did under one placement.

    Attributes
    ----------
    output : Tensor of shape (T, D)
    seconds : array of shape (repeats,)
        From a barrier to the end of the slowest process.
    phases : array of shape (repeats, L, devices, 3)
        Seconds of `PHASES`; waiting for others is part of dispatch and combine.
    sent : array of shape (L, devices, devices), int64
        Tokens that one process sent to another.
    calls : array of shape (L, devices), int64
        Calls of experts that a process computed.
    bytes : array of shape (L, devices, devices), int64
        What one process sent to another, tokens and their answers.
    """

    output: Tensor
    seconds: Floats
    phases: Floats
    sent: Numbers
    calls: Numbers
    bytes: Numbers


def run_alone(work: Workload) -> Tensor:
    """Output (T, D) of one process that has all experts."""
    hidden = work.hidden
    for layer, chosen, weight in zip(work.layers, torch.from_numpy(work.chosen), work.weight, strict=True):
        hidden = hidden + _answer(layer, hidden, chosen, weight)
    return hidden


def run_parallel(
    work: Workload, cases: Sequence[Case], repeats: int = 5, threads: int = 1, timeout: float = 120
) -> list[ParallelRun]:
    """Run a workload under placements, by as many processes as these have devices.

    Placements take turns, so that a machine that slows down slows all of them. Each runs once before it is timed.

    Parameters
    ----------
    work : Workload
    cases : sequence of Case
        All of the same number of devices.
    repeats : int
        Timed runs of each.
    threads : int
        Of each process.
    timeout : float
        Seconds after which a process that waits for another gives up.

    Raises
    ------
    InputError
        If the placements do not fit together or the workload.
    VtcError
        If a process fails; the others are ended.
    """
    devices = _check(work, cases)
    with tempfile.TemporaryDirectory(prefix="vtc-experts-") as scratch:
        job = (work, cases, repeats, threads, timeout, Path(scratch))
        try:
            spawn(_process, job, nprocs=devices)  # type: ignore[no-untyped-call]
        except ProcessRaisedException as error:
            words = str(error).strip().splitlines()[-1]
            raise VtcError(f"process {error.error_index} of the expert-parallel run failed: {words}") from error
        except ProcessExitedException as error:
            how = error.signal_name or f"exit code {error.exit_code}"
            raise VtcError(f"process {error.error_index} of the expert-parallel run was ended ({how})") from error
        return [_collect(Path(scratch), number, case, work, repeats) for number, case in enumerate(cases)]


def _check(work: Workload, cases: Sequence[Case]) -> int:
    layers, tokens, _ = work.chosen.shape
    devices = {case.placement.devices for case in cases}
    if len(devices) != 1:
        raise InputError("placements of an expert-parallel run need the same number of devices, and at least one")
    experts = {len(layer.gate_up) for layer in work.layers}
    for placement, homes in cases:
        if len(work.layers) != layers or placement.layers != layers or experts != {placement.experts}:
            raise InputError(
                f"the placement has {placement.layers} layers of {placement.experts} experts, the routes {layers} "
                f"layers, the weights {len(work.layers)} of {', '.join(str(one) for one in sorted(experts))}"
            )
        if homes.shape != (tokens,) or work.hidden.shape[0] != tokens or homes.max(initial=0) >= placement.devices:
            raise InputError(f"every one of {tokens} tokens needs a hidden state and a home below {placement.devices}")
    return devices.pop()


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


def _process(
    me: int, work: Workload, cases: Sequence[Case], repeats: int, threads: int, timeout: float, scratch: Path
) -> None:
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
        made, answers = _answer(experts, tokens, slots, weight).split_with_sizes([len(self.hidden), len(received)])
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


def _answer(experts: ExpertLayer, tokens: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Sums (N, D) of the experts that tokens (N, D) want (N, k), -1 for none, times their weights (N, k)."""
    made = torch.zeros_like(tokens)
    for index in torch.bincount(wanted[wanted >= 0], minlength=1).nonzero().flatten().tolist():
        row, call = (wanted == index).nonzero(as_tuple=True)
        made.index_add_(0, row, experts.expert(index, tokens[row]) * weight[row, call, None])
    return made


def _collect(scratch: Path, number: int, case: Case, work: Workload, repeats: int) -> ParallelRun:
    parts = [np.load(scratch / f"{number}-{device}.npz") for device in range(case.placement.devices)]
    output = torch.empty_like(work.hidden)
    for part in parts:
        output[torch.from_numpy(part["rows"])] = torch.from_numpy(part["output"])
    # What was sent is counted by who received it.
    return ParallelRun(
        output=output,
        seconds=np.max([part["seconds"] for part in parts], axis=0),
        phases=np.stack([part["phases"] for part in parts], axis=2),
        sent=np.stack([part["received"] for part in parts], axis=2),
        calls=np.stack([part["calls"] for part in parts], axis=1),
        bytes=np.stack([part["bytes"] for part in parts], axis=2),
    )

"""Expert parallelism for real: processes of this machine that own experts and send each other tokens.

What is sent is counted where it arrives, and every phase is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from vtc.errors import InputError, VtcError
from vtc.experts.process import run_process
from vtc.experts.statistics import Floats, Numbers
from vtc.experts.workload import Case, Workload

PHASES = ("dispatch", "compute", "combine")


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
            spawn(run_process, job, nprocs=devices)  # type: ignore[no-untyped-call]
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

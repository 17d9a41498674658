"""Expert parallelism on this machine: placements run by real processes, and a simulator checked by them.

Processes own experts and send each other tokens. A machine's constants are fitted from runs of some random placements;
the step times of all other placements are then predicted and compared. What is sent is compared with the replay, count
by count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from vtc.experts.parallel import PHASES, ParallelRun, run_parallel
from vtc.experts.placing import halves, homes_of, place
from vtc.experts.simulate import fit_machine, simulate_step, token_bytes
from vtc.experts.statistics import ExpertUse, Routes
from vtc.experts.traffic import Replay, replay
from vtc.experts.workload import Case, ExpertLayer, Workload, run_alone
from vtc.recipe.experts import METHODS, ExpertPlacement, Homes

FITTED = range(1, 5)
"""Seeds of the random placements that a machine's constants are fitted by."""
HOMES: tuple[Homes, ...] = ("sample", "modality")


def measured_placements(
    use: ExpertUse, layers: Sequence[ExpertLayer], devices: int, prompts: Sequence[int], repeats: int
) -> dict[str, Any]:
    """Run every placement by as many processes as there are devices.

    Parameters
    ----------
    use : ExpertUse
        Half of its prompts place the experts, the others run.
    layers : sequence of ExpertLayer
        The model's experts.
    devices : int
    prompts : sequence of int
        Prompts at once, one run after the other.
    repeats : int
        Timed runs of each placement.
    """
    fitted, routes = halves(use)
    size = token_bytes(layers[0].down.shape[1], use.active)
    rows: list[tuple[str, int, bool, Replay, ParallelRun, float]] = []
    for count in prompts:
        some = _first(routes, count)
        cases = {name: Case(*case) for name, *case in _cases(fitted, some, devices)}
        work = _workload(layers, some)
        expected = run_alone(work)
        for (name, case), run in zip(cases.items(), run_parallel(work, list(cases.values()), repeats), strict=True):
            counted = replay(some, case.placement, case.homes)
            np.testing.assert_array_equal(run.sent, counted.sent)
            np.testing.assert_array_equal(run.calls, counted.calls)
            difference = float((run.output - expected).abs().max() / expected.abs().max())
            rows.append((name, count, name.startswith("fitted"), counted, run, difference))
    machine = fit_machine([(counted, run) for _, _, fits, counted, run, _ in rows if fits], size)
    table = []
    for name, count, fits, counted, run, difference in rows:
        step, seconds = simulate_step(counted, machine, size), float(np.median(run.seconds))
        phases = np.median(run.phases.max(axis=2).sum(axis=1), axis=0)
        row: dict[str, Any] = {"placement": name, "prompts": count, "fitted": fits, "difference": difference}
        row |= {"measured": np.quantile(run.seconds, (0.25, 0.5, 0.75)).tolist(), "predicted": step.total}
        row |= {"error": step.total / seconds - 1, "bytes": int(run.bytes.sum())}
        row |= {"phases": dict(zip(PHASES, phases.tolist(), strict=True))}
        table.append(row | {part: asdict(getattr(counted, part)) for part in ("all", "text", "visual")})
    errors = np.abs([row["error"] for row in table if not row["fitted"]])
    return {
        "constants": asdict(machine),
        "error": {
            "runs": len(errors),
            "median": float(np.median(errors)),
            "largest": float(errors.max()),
            "within_10_percent": float((errors <= 0.1).mean()),
        },
        "runs": table,
    }


def _cases(fitted: ExpertUse, routes: Routes, devices: int) -> Iterator[tuple[str, Any, Any]]:
    for homes in HOMES:
        for method in METHODS:
            copies = devices if method == "eplb" else 0
            wanted = ExpertPlacement(devices=devices, placement=method, homes=homes, copies=copies)
            yield f"{method} / {homes}", place(fitted, wanted), homes_of(routes, wanted)
        for seed in FITTED:
            wanted = ExpertPlacement(devices=devices, placement="random", homes=homes, seed=seed)
            yield f"fitted {seed} / {homes}", place(fitted, wanted), homes_of(routes, wanted)


def _first(routes: Routes, prompts: int) -> Routes:
    members = np.isin(routes.sample, np.unique(routes.sample)[:prompts])
    return Routes(routes.chosen[:, members], routes.modality[members], routes.sample[members])


def _workload(layers: Sequence[ExpertLayer], routes: Routes) -> Workload:
    """Recorded routes with the model's experts; a call's weight is 1 / k, and hidden states are random."""
    tokens, active = routes.chosen.shape[1:]
    hidden = torch.randn(tokens, layers[0].down.shape[1], generator=torch.Generator().manual_seed(0))
    return Workload(layers, hidden, routes.chosen, torch.full((len(layers), tokens, active), 1 / active))

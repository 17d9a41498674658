"""Expert parallelism on this machine, measured and predicted: ``python -m docs.studies.expert_parallel``.

Processes own experts and send each other tokens. A machine's constants are fitted from runs of some placements; the
step times of other placements are then predicted and compared. What is sent is compared with the replay, count by
count. Writes ``docs/results/expert_parallel.json``. Routes come from expert statistics, or from a router that is drawn
at random and prefers some experts for each modality. Weights are random: neither traffic nor time depends on them.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from docs.studies.peers import environment
from vtc.experts.parallel import PHASES, ParallelRun, run_parallel
from vtc.experts.placement import place_balanced, place_by_modality, place_contiguous, place_eplb, place_shuffled
from vtc.experts.simulate import fit_machine, simulate_step, token_bytes
from vtc.experts.solving import align_devices, place_near_homes, place_together
from vtc.experts.specialisation import visual_share
from vtc.experts.statistics import Floats, Routes, load_statistics
from vtc.experts.traffic import Replay, calls_by_home, homes_by_modality, homes_by_sample, replay
from vtc.experts.workload import Case, ExpertLayer, Workload, run_alone

DOCS = Path(__file__).resolve().parents[1]
FITTED = ("shuffled 0", "shuffled 1", "shuffled 2")


def drawn_routes(layers: int, experts: int, active: int, prompts: int, seed: int = 0) -> Routes:
    """Routes of prompts with 48 visual and 16 text tokens, by a random router that tells modalities apart a little."""
    generator = np.random.default_rng(seed)
    modality, sample = np.tile(np.repeat([1, 0], [48, 16]), prompts), np.repeat(np.arange(prompts), 64)
    taste, popular = generator.normal(size=(layers, 2, experts)), generator.normal(size=(layers, 1, experts))
    logits = taste[:, modality] + 0.5 * popular + generator.gumbel(size=(layers, len(modality), experts))
    return Routes(np.argsort(-logits, axis=2)[:, :, :active], modality, sample)


def first_prompts(routes: Routes, prompts: int) -> Routes:
    """Routes of the first prompts."""
    members = np.isin(routes.sample, np.unique(routes.sample)[:prompts])
    return Routes(routes.chosen[:, members], routes.modality[members], routes.sample[members])


def cases_of(routes: Routes, experts: int, devices: int) -> dict[str, Case]:
    """Placements made from routes, each with homes by prompt and by modality."""
    layers = len(routes.chosen)
    hot = np.eye(experts)[routes.chosen].sum(axis=2)  # (L, T, E)
    chosen = np.einsum("lte,tm->lme", hot, np.eye(2)[routes.modality])
    load, together = chosen.sum(axis=1), hot.transpose(0, 2, 1) @ hot
    by_modality = homes_by_modality(routes, devices)
    pairs = calls_by_home(routes, by_modality, experts, devices)
    placements = {f"shuffled {seed}": place_shuffled(layers, experts, devices, seed) for seed in range(len(FITTED))} | {
        "contiguous": place_contiguous(layers, experts, devices),
        "balanced": place_balanced(load, devices),
        "balanced, aligned": align_devices(place_balanced(load, devices), pairs),
        "eplb": place_eplb(load, devices, copies=devices),
        "by modality": place_by_modality(visual_share(chosen), devices),
        "solved, modality": place_near_homes(pairs, devices, tolerance=0.1).placement,
        "solved, prompt": place_together(together, load, devices, tolerance=0.1).placement,
    }
    homes = {"prompt": homes_by_sample(routes, devices), "modality": by_modality}
    return {f"{name} / {by}": Case(one, home) for name, one in placements.items() for by, home in homes.items()}


def workload(routes: Routes, experts: int, width: int, inner: int) -> Workload:
    """Random weights for routes; a call's weight is 1 / k."""
    generator = torch.Generator().manual_seed(0)
    layers, tokens, active = routes.chosen.shape

    def layer() -> ExpertLayer:
        gate_up = torch.randn(experts, 2 * inner, width, generator=generator) / width**0.5
        return ExpertLayer(gate_up, torch.randn(experts, width, inner, generator=generator) / inner**0.5)

    hidden = torch.randn(tokens, width, generator=generator)
    weight = torch.full((layers, tokens, active), 1 / active)
    return Workload([layer() for _ in range(layers)], hidden, routes.chosen, weight)


def check(work: Workload, counted: Replay, run: ParallelRun, expected: torch.Tensor) -> float:
    """Largest difference of a run's output, relative to the largest value, after making sure of what it sent."""
    np.testing.assert_array_equal(run.sent, counted.sent)
    np.testing.assert_array_equal(run.calls, counted.calls)
    return float((run.output - expected).abs().max() / expected.abs().max())


def quartiles(values: Floats) -> list[float]:
    """First, second and third."""
    return np.quantile(values, (0.25, 0.5, 0.75)).tolist()  # type: ignore[no-any-return]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything and compare."""
    if options.statistics:
        use = load_statistics(options.statistics).use()
        routes, experts = use.routes, use.experts
    else:
        experts = options.experts
        routes = drawn_routes(options.layers, experts, options.active, max(options.prompts))
    size = token_bytes(options.width, routes.chosen.shape[2])
    rows, fitted = [], []
    for prompts in options.prompts:
        some = first_prompts(routes, prompts)
        cases, work = cases_of(some, experts, options.devices), workload(some, experts, options.width, options.inner)
        expected = run_alone(work)
        for (name, case), run in zip(
            cases.items(), run_parallel(work, list(cases.values()), options.repeats), strict=True
        ):
            counted = replay(some, case.placement, case.homes)
            difference = check(work, counted, run, expected)
            rows.append((name, prompts, counted, run, difference))
            if name.split(" / ")[0] in FITTED:
                fitted.append((counted, run))
    machine = fit_machine(fitted, size)
    table = []
    for name, prompts, counted, run, difference in rows:
        step, seconds = simulate_step(counted, machine, size), float(np.median(run.seconds))
        phases = np.median(run.phases.max(axis=2).sum(axis=1), axis=0)
        row = {"placement": name, "prompts": prompts, "fitted": name.split(" / ")[0] in FITTED}
        row |= {"measured": quartiles(run.seconds), "predicted": step.to_json(), "error": step.total / seconds - 1}
        row |= {"phases": dict(zip(PHASES, phases.tolist(), strict=True)), "difference": difference}
        table.append(row | {"traffic": {key: asdict(getattr(counted, key)) for key in ("all", "text", "visual")}})
    errors = np.abs([row["error"] for row in table if not row["fitted"]])
    return {
        "machine": environment.machine(),
        "load": os.getloadavg(),
        "settings": {key: str(value) for key, value in vars(options).items()},
        "constants": asdict(machine),
        "error": {
            "runs": len(errors),
            "median": float(np.median(errors)),
            "largest": float(errors.max()),
            "within 10 %": float((errors <= 0.1).mean()),
        },
        "runs": table,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--statistics", type=Path, help="file of expert statistics whose routes are replayed")
    parser.add_argument("--devices", type=int, default=2, help="processes")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--active", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--inner", type=int, default=128)
    parser.add_argument("--prompts", type=int, nargs="+", default=[2, 8, 24], help="at once, one run after the other")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "expert_parallel.json")
    options = parser.parse_args()
    results = measure(options)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row in results["runs"]:
        fit = "fitted" if row["fitted"] else ""
        print(f"{row['placement']:32} {row['prompts']:3} {1e3 * row['measured'][1]:8.2f} ms {row['error']:+7.1%} {fit}")
    print(results["constants"], results["error"])


if __name__ == "__main__":
    main()

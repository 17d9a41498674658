"""Rounds: every contestant in turn, in the other direction each time, each visit in a process of its own.

A fresh process a visit keeps libraries apart and one model in memory at a time, and gives loading and peak memory as
often as everything else. A contestant that fails is told of, with its reason, and left out from then on.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.studies.peers.contestants import Contestant, Step
from docs.studies.peers.preparing import mark, request
from docs.studies.peers.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
VISIT_SECONDS = 3600
"""Of a visit, or a conversion."""
CONVERTERS = {"ort_genai": "ort-genai", "openvino_genai": "openvino-genai"}
"""Steps that are taken in a peer's environment."""
Figures = dict[str, list[float]]


class Failed(Exception):
    """A contestant cannot be prepared or measured; the message says why, in a line."""


def in_turns(
    contestants: Sequence[Contestant],
    rounds: int,
    visit: Callable[[Contestant], Mapping[str, Any]],
    after_round: Callable[[dict[str, Any]], None] = lambda _: None,
    failed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measure.

    Parameters
    ----------
    contestants : sequence of Contestant
    rounds : int
    visit : callable
        Measures one, and returns ``figures`` and ``facts``; raises Failed.
    after_round : callable
        Given the results so far.
    failed : mapping of str to str
        Those that could not be prepared, and why.

    Returns
    -------
    dict of contestant's name to dict
        ``table``, and either ``failed``, or ``figures`` (each a summary), ``facts`` and ``rounds``.
    """
    reasons = dict(failed or {})
    samples: dict[str, Figures] = {one.name: {} for one in contestants}
    facts: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for turn in range(rounds):
        for one in contestants if turn % 2 == 0 else reversed(contestants):
            if one.name in reasons:
                continue
            try:
                told = visit(one)
            except Failed as error:
                reasons[one.name] = str(error)
                continue
            facts[one.name] = told["facts"]
            for name, values in told["figures"].items():
                samples[one.name].setdefault(name, []).extend(values)
        found = {one.name: _result(one, samples[one.name], facts, reasons, turn + 1) for one in contestants}
        after_round(found)
    return found


def _result(
    one: Contestant, figures: Figures, facts: Mapping[str, Any], reasons: Mapping[str, str], rounds: int
) -> dict[str, Any]:
    if one.name in reasons:
        return {"table": one.table, "failed": reasons[one.name]}
    return {
        "table": one.table,
        "rounds": rounds,
        "figures": {name: summary(values) for name, values in figures.items()},
        "facts": facts[one.name],
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, least and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "min": min(values), "q1": low, "q3": high, "n": len(values)}


# Processes ------------------------------------------------------------------------------------------------------------


class Processes:
    """Runs steps and visits, in the project's interpreter or in that of the peers.

    Parameters
    ----------
    settings : Settings
    python : callable
        The interpreter of a peer's environment, by its name.
    """

    def __init__(self, settings: Settings, python: Callable[[str], Path]) -> None:
        self._settings, self._python = settings, python
        self._tried: dict[Step, str | None] = {}

    def prepare(self, contestants: Iterable[Contestant]) -> dict[str, str]:
        """Take all steps that are not taken; the contestants that lack one, and why."""
        failed = {}
        for one in contestants:
            for step in one.needs:
                reason = self.take(step)
                if reason is not None:
                    failed[one.name] = f"cannot be prepared: {reason}"
                    break
        return failed

    def take(self, step: Step) -> str | None:
        """Take a step, if it is not taken; why it cannot be, or None."""
        if step not in self._tried:
            self._tried[step] = None
            if not mark(self._settings.work, step).exists():
                tell(f"preparing: {' '.join(step)}")
                try:
                    self._run(
                        CONVERTERS.get(step[0], ""), "docs.studies.peers.preparing", step, request(self._settings)
                    )
                except Failed as error:
                    self._tried[step] = str(error)
        return self._tried[step]

    def visit(self, one: Contestant) -> dict[str, Any]:
        """Measure a contestant in a process of its own."""
        tell(f"measuring: {one.name}")
        said = self._run(one.environment, "docs.studies.peers.worker", (), json.dumps(one.request), one.variables)
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found

    def _run(
        self, environment: str, module: str, arguments: Sequence[str], given: str, more: Mapping[str, str] | None = None
    ) -> str:
        python = str(self._python(environment)) if environment else sys.executable
        own = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        threads = str(self._settings.threads)
        variables = os.environ | {"PYTHONPATH": own, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        variables |= more or {}
        try:
            done = subprocess.run(
                [python, "-m", module, *arguments], input=given, capture_output=True, text=True, cwd=ROOT,
                env=variables, timeout=VISIT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"took longer than {VISIT_SECONDS} s") from error
        if done.returncode:
            # Where the work directory is, is the machine's own affair: results are published.
            raise Failed(_reason(done.stderr, done.returncode).replace(f"{self._settings.work}{os.sep}", ""))
        return done.stdout


def _reason(stderr: str, code: int) -> str:
    """The last line that was said, without the noise of libraries as they are taken down."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    error = [
        line for line in lines if ": " in line and line.split(":")[0].split(".")[-1].endswith(("Error", "Exception"))
    ]
    last = (error or lines or [""])[-1]
    ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    said = re.sub(r"^vtc\.errors\.\w+: ", "", last)[:300]
    return said if said and code > 0 else f"{ended} {said}".strip()


def tell(what: str) -> None:
    """Say what is done, on stderr."""
    print(what, file=sys.stderr, flush=True)

"""A run over areas: cases drawn from a seed, each finding made small and kept, everything counted."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from tests.fuzz.areas import AREAS
from tests.fuzz.case import Case
from tests.fuzz.running import Outcome, Runner
from tests.fuzz.shrink import TRIES, shrink

ALIKE = 1
"""Findings of a kind with much the same message that are kept in an area."""


@dataclass
class Counts:
    """What became of an area's cases.

    Attributes
    ----------
    outcomes : Counter
        How many ended in which way, see :class:`tests.fuzz.running.Outcome`.
    seconds : float
        Wall time.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, object]:
        """As JSON data."""
        return {
            "cases": self.outcomes.total(),
            **dict(sorted(self.outcomes.items())),
            "seconds": round(self.seconds, 1),
        }


def drawn(area: str, bases: Path, seed: int) -> Iterator[Case]:
    """Cases without an end, which the seed draws."""
    for number in count():
        yield AREAS[area].draw(Random(f"{seed} {area} {number}"), bases)


def campaign(
    runner: Runner,
    findings: Path,
    areas: Sequence[str],
    seed: int,
    go_on: Callable[[float, int], bool],
    tell: Callable[[str], None],
    cases: Callable[[str, Path, int], Iterator[Case]] = drawn,
) -> dict[str, Counts]:
    """Run cases of areas, one area after the other.

    Parameters
    ----------
    runner : Runner
    findings : Path
        Where the smallest case of each finding is written.
    areas : sequence of str
    seed : int
        The same one draws the same cases.
    go_on : callable
        Whether an area is to have another case, given its seconds and cases so far.
    tell : callable
    cases : callable
        The cases of an area, given its name, the directory with its bases, and the seed.
    """
    counts = {}
    for area in areas:
        bases, begin, own, seen = runner.bases(area), time.monotonic(), Counts(), Counter[str]()
        for number, case in enumerate(cases(area, bases, seed)):
            if not go_on(time.monotonic() - begin, number):
                break
            outcome = runner.run(case)
            own.outcomes[outcome.kind] += 1
            if outcome.fault:
                alike = signature(outcome)
                seen[alike] += 1
                if seen[alike] <= ALIKE:
                    most = 4 if outcome.kind == "hang" else TRIES
                    small = shrink(case, lambda other, like=alike: signature(runner.run(other)) == like, most)
                    path = findings / area / f"{alike}-{seed}-{number}.json"
                    small.write(path, f"{outcome.kind}: {outcome.said}")
                    tell(f"{area} {number}: {outcome.kind}: {outcome.said}\n  {path}")
        own.seconds = time.monotonic() - begin
        counts[area] = own
        tell(f"{area}: {json.dumps(own.to_dict())}")
    return counts


def signature(outcome: Outcome) -> str:
    """The same for findings that are much alike: their kind, and a digest of their message's words without numbers."""
    words = [word for word in outcome.said.split() if word.isalpha()][:6] if outcome.kind != "silent acceptance" else []
    return f"{outcome.kind.replace(' ', '-')}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:6]}"


def replay(runner: Runner, case: Case) -> str:
    """Run a seed; return what is wrong, or nothing."""
    outcome = runner.run(case)
    return f"{outcome.kind}: {outcome.said}" if outcome.fault else ""

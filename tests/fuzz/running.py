"""Runs cases in a worker process, and judges how each ended."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.fuzz.areas import AREAS
from tests.fuzz.case import Case
from tests.fuzz.changes import apply
from vtc.shown import LINE

SECONDS = 10
GROWTH = 2**30
START_SECONDS = 300
LINES = 50
"""Most of a refusal that tells a line for each fault."""
FAULT_A_LINE = ("recipes", "checkpoints", "states")
"""Areas where a recipe or a checkpoint is read, of which each fault is told in a line."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes
    ----------
    kind : str
        ``accepted``, ``refused``, or what is wrong: ``hang``, ``died``, ``memory``, ``unexpected``, ``exit code``,
        ``noise``, ``silent acceptance``, ``false refusal``, ``wrong result``.
    said : str
        What tells more of it.
    """

    kind: str
    said: str

    @property
    def fault(self) -> bool:
        """Whether it is a finding."""
        return self.kind not in ("accepted", "refused")


class Runner:
    """Runs the cases of areas; a worker that hangs or dies is replaced.

    Parameters
    ----------
    store : Path
        Directory for the areas' bases and the cases.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self._workers: dict[bool, _Worker] = {}
        self._bases: set[str] = set()
        self._count = 0

    def run(self, case: Case) -> Outcome:
        """Run a case and judge it."""
        area = AREAS[case.area]
        bases = self.bases(case.area)
        self._count += 1
        place = self.store / "cases" / f"{self._count}"
        copy_base(bases / case.base, place)
        try:
            apply(case.changes, place)
            answer = self._worker(area.torch).ask(place, case.args)
            return judge(case, answer, place, bases)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def bases(self, name: str) -> Path:
        """The directory with an area's bases, made when it is first asked for, as its worker is."""
        path = self.store / "bases" / name
        if name not in self._bases:
            path.mkdir(parents=True, exist_ok=True)
            AREAS[name].build(path)
            self._bases.add(name)
            self._worker(AREAS[name].torch)
        return path

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers.values():
            worker.close()

    def _worker(self, torch: bool) -> _Worker:
        worker = self._workers.get(torch)
        if worker is None or not worker.alive:
            self._workers[torch] = worker = _Worker(torch)
        return worker


def judge(case: Case, answer: dict[str, Any], place: Path, bases: Path) -> Outcome:
    """Tell how a case ended.

    Parameters
    ----------
    case : Case
    answer : dict
        The worker's, or ``{"lost": kind}``.
    place, bases : Path
        The directory that the command ran in, and the one with the area's bases.
    """
    if lost := answer.get("lost"):
        return Outcome(lost, answer["err"])
    code, err = answer["code"], answer["err"]
    last = (err.strip().splitlines() or [""])[-1]
    if answer["grown"] > GROWTH:
        return Outcome("memory", f"{answer['grown'] >> 20} MiB; {last}")
    if "Traceback (most recent" in err or last.startswith("unexpected "):
        return Outcome("unexpected", last)
    if answer["seconds"] > SECONDS:
        return Outcome("hang", f"{answer['seconds']:.1f} s; {last}")
    if code not in (0, 2):
        return Outcome("exit code", f"{code}; {last}")
    if code == 2 and (noise := _noise(err, case)):
        return Outcome("noise", noise)
    if wrong := AREAS[case.area].wrong(case, code, answer["out"], place, bases):
        return Outcome("wrong result", wrong)
    if code == 0 and case.expects == "refused":
        return Outcome("silent acceptance", answer["out"][:200])
    if code == 2 and case.expects == "accepted":
        return Outcome("false refusal", last)
    return Outcome("refused" if code else "accepted", last)


def _noise(err: str, case: Case) -> str:
    """Say what makes a refusal unfit for a terminal."""
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    if not lines:
        return "exit code 2 without a word"
    if any(len(line) > LINE for line in lines):
        return f"a line of {max(map(len, lines))} characters: {max(lines, key=len)[:200]}"
    if bad := [line for line in err.split("\n") if not line.replace("\t", "").isprintable()]:
        return f"control characters: {bad[0]!r}"[:400]
    if len(lines) > (LINES if case.area in FAULT_A_LINE else 1):
        return f"{len(lines)} lines: {lines[0][:200]}"
    if len(set(lines)) < len(lines):
        return f"a line twice: {lines[0][:200]}"
    return ""


def copy_base(base: Path, place: Path) -> None:
    """Lay a base out, by links to its files: changes put new files in their place."""
    shutil.copytree(base, place, symlinks=True, copy_function=os.link)


class _Worker:
    """A process of :mod:`tests.fuzz.worker`."""

    def __init__(self, torch: bool) -> None:
        command = [sys.executable, "-m", "tests.fuzz.worker", *(["--torch"] if torch else [])]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if "ready" not in self._read(START_SECONDS):
            raise RuntimeError("the worker does not start")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, cwd: Path, args: tuple[str, ...]) -> dict[str, Any]:
        """Run a command line."""
        _stream(self._process.stdin).write(json.dumps({"cwd": str(cwd), "args": args}).encode() + b"\n")
        _stream(self._process.stdin).flush()
        return self._read(SECONDS)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            _stream(stream).close()

    def _read(self, seconds: float) -> dict[str, Any]:
        stream = _stream(self._process.stdout)
        readable, _, _ = select.select([stream], [], [], seconds)
        if not readable:
            self.close()
            return {"lost": "hang", "err": f"no end after {seconds} s"}
        line = stream.readline()
        if not line:
            self.close()
            return {"lost": "died", "err": f"exit code {self._process.returncode}"}
        answer: dict[str, Any] = json.loads(line)
        return answer


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _environment() -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    return {**os.environ, **own}

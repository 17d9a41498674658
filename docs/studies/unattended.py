"""Steps that run one after the other with nobody looking on, each in a process of its own, within one budget of time.

Whatever happens to a step, the next one runs. Each has a file of its own, ``STEP.json``, which is there from its start
and is written anew whenever the step has found something: what a step that was stopped had found stays. Needs Python
alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SKIPPED = 77
"""Exit code of a step that finds that it cannot run here, as of Automake's tests."""
GRACE = 3.0
"""Seconds from asking a step to end to ending it."""


@dataclass(frozen=True)
class Step:
    """Something to run.

    Attributes
    ----------
    name : str
        Of its file.
    command : sequence of str
        Its exit code is 0, :data:`SKIPPED`, or that of a failure. It says what it found by :func:`note`.
    estimate : float
        Seconds; it is not started when less is left.
    limit : float
        Seconds after which it is stopped.
    needs : sequence of str
        Modules that must be importable.
    """

    name: str
    command: Sequence[str]
    estimate: float
    limit: float
    needs: Sequence[str] = ()


class Skip(Exception):
    """Says in one line why a step cannot run here."""


def note(path: Path, **found: Any) -> None:
    """Add to what a step has found; the file is whole at every moment."""
    record = read(path)
    record["result"] = {**record.get("result", {}), **found}
    write(path, record)


def read(path: Path) -> dict[str, Any]:
    """A step's record; empty where there is none."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return record


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Put a record in the place of the one before."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def run_steps(
    steps: Sequence[Step],
    out: Path,
    seconds: float,
    facts: Mapping[str, Any],
    cwd: Path,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run steps until there are no more, or no time is left.

    Parameters
    ----------
    steps : sequence of Step
        The most valuable first.
    out : Path
        Where ``STEP.json`` and ``STEP.log``, all that it printed, are written.
    seconds : float
        For all.
    facts : mapping
        What every record says beside: the machine, the date.
    cwd : Path
        Where steps run, and what is on their ``PYTHONPATH``.
    say : callable
        Told of every step's start and end.

    Returns
    -------
    list of dict
        The records: ``step``, ``status`` (``done``, ``skipped``, ``failed`` or ``out of time``), ``reason``,
        ``seconds``, ``result``.
    """
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    records = []
    for step in steps:
        path = out / f"{step.name}.json"
        write(path, {"step": step.name, "status": "running", "reason": "", "seconds": 0.0, "result": {}, **facts})
        begin = time.monotonic()
        status, reason = "stopped", "the run was interrupted"
        try:
            status, reason = _run(step, path, end - begin, cwd, say)
        finally:
            record = read(path)
            record |= {"status": status, "reason": reason, "seconds": round(time.monotonic() - begin, 1)}
            write(path, record)
        records.append(record)
        say(f"{step.name}: {status}, {record['seconds']:.0f} s" + (f" ({reason})" if reason else ""))
    return records


def _run(step: Step, path: Path, left: float, cwd: Path, say: Callable[[str], None]) -> tuple[str, str]:
    """Run a step; its status and the reason for it."""
    if missing := [name for name in step.needs if not _importable(name)]:
        return "skipped", f"needs {', '.join(missing)}, which cannot be imported here"
    if left < step.estimate:
        return "out of time", f"takes about {step.estimate:.0f} s, and {max(left, 0):.0f} s are left"
    limit = max(min(step.limit, left - GRACE), 0.0)
    say(f"{step.name}: up to {limit:.0f} s")
    log = path.with_suffix(".log")
    paths = os.pathsep.join([str(cwd), *filter(None, [os.environ.get("PYTHONPATH")])])
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with log.open("wb") as printed:
        process = subprocess.Popen(
            step.command,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=os.environ | offline | {"PYTHONPATH": paths},
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return "out of time", f"stopped after {limit:.0f} s; what it had found is here"
        finally:
            _end(process)
    if code == 0:
        return "done", ""
    told = read(path).get("reason", "")
    if code == SKIPPED:
        return "skipped", told
    return "failed", told or _last_line(log) or (f"exit code {code}" if code > 0 else f"ended by signal {-code}")


def _importable(name: str) -> bool:
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(name) is not None
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""


def run_step(path: Path, work: Callable[[], None]) -> int:
    """The inside of a step: do the work, tell in the record why it was not done; the exit code."""
    try:
        work()
        return 0
    except Skip as skip:
        reason, code = str(skip), SKIPPED
    except Exception as error:
        import traceback

        traceback.print_exc()
        reason, code = f"{type(error).__name__}: {error}", 1
    lines = reason.strip().splitlines() or [""]
    write(path, {**read(path), "reason": lines[0][:300]})
    return code

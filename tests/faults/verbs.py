"""The verbs themselves, killed at random moments, starved and disturbed.

Each run is a process of its own, split off from one that has imported everything, so that a kill meets the work and not
imports. The output is replaced each time by another one, so that old and new can be told apart.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtc.artifact import read_manifest, verify_files
from vtc.cli import main
from vtc.lock import LOCK

FINE = {"validate": (0, 3, 5)}
"""Exit codes of a run that has done its work, where others than 0 do: the verdicts of the gate."""
MOST_SECONDS = 300.0


@dataclass(frozen=True)
class Case:
    """A verb and what it writes.

    Attributes
    ----------
    verb : str
    out : Path
    variants : two sequences of str
        Arguments that make one output, and another one.
    says : callable
        Which of the two is there: 0 or 1; None where there is nothing. Fails where what is there is not whole.
    """

    verb: str
    out: Path
    variants: tuple[Sequence[str], Sequence[str]]
    says: Callable[[], int | None]


def cases(folder: Path) -> list[Case]:
    """A tiny checkpoint with all that the verbs make of it, and the cases."""
    model, data = _checkpoint(folder), _data(folder)
    recipes = [_recipe(folder, keep) for keep in (4, 6)]
    for number, recipe in enumerate(recipes):
        _once("compress", model, "--recipe", recipe, "-o", folder / f"compressed-{number}", "--data", data)
    _once("export", folder / "compressed-0", "-o", folder / "bundle-0", "--samples", "2")
    calibrated = [_recipe(folder, keep, "- kind: visual_exit\n  layer: auto\n") for keep in (4, 6)]
    compress = [["--recipe", recipe, "--data", data, "--samples", "4"] for recipe in calibrated]
    export = [[folder / f"compressed-{number}", "--samples", "2", "--target", "rtx"] for number in (0, 1)]
    build = [[folder / "bundle-0", "--target", "rtx", "--max-text", text] for text in ("64", "128")]
    judge = [[folder / "bundle-0", "--against", model, "--data", data, "--samples", most] for most in ("6", "8")]
    made = folder / "made"
    made.mkdir()
    found = []
    for verb, kind, schema, variants, field in (
        ("compress", "compressed", 99, [[model, *one] for one in compress], "recipe_digest"),
        ("export", "bundle", 99, export, "recipe_digest"),
        ("build", "engines", 99, build, "limits"),
    ):
        out = made / verb
        arguments = [[verb, *map(str, one), "-o", str(out)] for one in variants]
        found.append(Case(verb, out, (arguments[0], arguments[1]), _Artifact(out, kind, schema, field)))
    out = made / "report.json"
    arguments = [["validate", *map(str, one), "-o", str(out), "--baselines", "none"] for one in judge]
    found.append(Case("validate", out, (arguments[0], arguments[1]), lambda: _asked(out)))
    return found


class _Artifact:
    """Tells one artifact from another by a field of its manifest; the first that it is shown is number 0."""

    def __init__(self, out: Path, kind: str, schema: int, field: str) -> None:
        self.out, self.kind, self.schema, self.field = out, kind, schema, field
        self.seen: list[object] = []

    def __call__(self) -> int | None:
        if not os.path.lexists(self.out):
            return None
        manifest = read_manifest(self.out, self.kind, self.schema)
        verify_files(self.out, manifest["files"])
        there = {path.relative_to(self.out).as_posix() for path in self.out.rglob("*") if path.is_file()}
        assert there <= {*manifest["files"], "manifest.json", ".vtc-work"}, there
        if manifest[self.field] not in self.seen:
            self.seen.append(manifest[self.field])
        return self.seen.index(manifest[self.field])


def _asked(out: Path) -> int | None:
    return (6, 8).index(json.loads(out.read_text())["data"]["items"]) if out.exists() else None


def kills(case: Case, times: int, rng: random.Random) -> Counter[str]:
    """Kill a verb at random moments, and run it again to its end each time.

    Returns
    -------
    Counter
        How many were killed, what was at the place then, and how many had ended before.
    """
    counts: Counter[str] = Counter()
    usual = min(_seconds(case, variant) for variant in (0, 1))
    tries = 0
    while counts["kills"] < times and tries < 2 * times:
        tries += 1
        old = case.says()
        assert old is not None
        new = 1 - old
        code = start(case.variants[new], kill_after=rng.uniform(0, usual))
        counts["kills" if code == -signal.SIGKILL else "ended before"] += 1
        assert code == -signal.SIGKILL or code in FINE.get(case.verb, (0,)), (case.verb, code)
        now = case.says()
        assert now in (old, new), (case.verb, old, now)
        if code == -signal.SIGKILL:
            counts["old after the kill" if now == old else "new after the kill"] += 1
        finish(case, new)
        counts["reruns that ended right"] += 1
    return counts


def signals(case: Case, times: int, rng: random.Random) -> Counter[str]:
    """As :func:`kills`, with the signals of a terminal and of a scheduler."""
    counts: Counter[str] = Counter()
    usual = min(_seconds(case, variant) for variant in (0, 1))
    for number in range(times):
        which = (signal.SIGINT, signal.SIGTERM)[number % 2]
        old = case.says()
        assert old is not None
        code = start(case.variants[1 - old], kill_after=rng.uniform(0, usual), how=which)
        assert code in (130, -which, *FINE.get(case.verb, (0,))), (case.verb, which, code)
        counts[which.name if code in (130, -which) else "ended before"] += 1
        assert case.says() in (old, 1 - old)
        finish(case, 1 - old)
    return counts


def limits(case: Case) -> Counter[str]:
    """Runs that may not write files above a size, or open more than a few."""
    counts: Counter[str] = Counter()
    finish(case, 0)
    for which, limit in (
        *((resource.RLIMIT_FSIZE, size) for size in (0, 1000, 20_000)),
        *((resource.RLIMIT_NOFILE, most) for most in (16, 24)),
    ):
        code, errors = told(case.variants[1], limit=(which, limit))
        name = "RLIMIT_FSIZE" if which == resource.RLIMIT_FSIZE else "RLIMIT_NOFILE"
        assert code in (1, 2, *FINE.get(case.verb, (0,))), (case.verb, name, limit, code, errors)
        wrong = [word for word in ("Traceback", "unexpected") if word in errors]
        counts[f"{name}, {'in a line' if not wrong else 'with ' + wrong[0]}"] += 1
        if wrong:
            print(case.verb, name, limit, errors[-500:], file=sys.stderr)
        assert case.says() in (0, 1)
        finish(case, 0)
    return counts


def two_at_once(case: Case) -> Counter[str]:
    """Two commands into one output: one does its work, the other names it in a line."""
    finish(case, 0)
    first = fork(case.variants[1])
    end = time.monotonic() + MOST_SECONDS
    while not case.out.with_name(f".{case.out.name}{LOCK}").exists() and time.monotonic() < end:
        if case.verb == "validate":
            break
        time.sleep(0.001)
    code, errors = told(case.variants[0])
    assert wait(first) in FINE.get(case.verb, (0,))
    if case.verb == "validate":  # a file is replaced whole, whoever comes last
        assert case.says() in (0, 1)
        return Counter({"both wrote": 1})
    if code == 0:
        return Counter({"first had ended": 1})
    assert code == 2, (code, errors)
    assert f"(process {first})" in errors, errors
    assert case.says() == 1
    return Counter({"second named the first": 1})


def _seconds(case: Case, variant: int) -> float:
    begin = time.monotonic()
    finish(case, variant)
    return time.monotonic() - begin


def finish(case: Case, variant: int) -> None:
    """Run a verb to its end; its output must be the new one then, with nothing beside it."""
    code, errors = told(case.variants[variant])
    assert code in FINE.get(case.verb, (0,)), (case.verb, code, errors)
    assert case.says() == variant, (case.verb, variant, case.says())
    beside = {path.name for path in case.out.parent.iterdir() if case.out.name in path.name}
    left = {name for name in beside if name != case.out.name and case.verb != "validate"}
    assert not left, (case.verb, left)


def start(arguments: Sequence[str], kill_after: float | None = None, how: signal.Signals = signal.SIGKILL) -> int:
    """Run a verb, and send it a signal after so many seconds; returns its exit code."""
    child = fork(arguments)
    if kill_after is not None:
        end = time.monotonic() + kill_after
        while time.monotonic() < end:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(child, how)
    return wait(child)


def told(arguments: Sequence[str], limit: tuple[int, int] | None = None) -> tuple[int, str]:
    """Run a verb to its end; its exit code and what it said on stderr."""
    read, write = os.pipe()
    child = fork(arguments, stderr=write, limit=limit)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        errors = stream.read().decode(errors="replace")
    return wait(child), errors


def fork(arguments: Sequence[str], stderr: int | None = None, limit: tuple[int, int] | None = None) -> int:
    """Start a verb in a process that is split off from this one."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere if stderr is None else stderr, 2)
        if limit is not None:
            resource.setrlimit(limit[0], (limit[1], limit[1]))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        main(list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Exit code of a process; it is ended if it takes too long."""
    end = time.monotonic() + MOST_SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("a run hangs")


def _once(*arguments: object) -> None:
    code, errors = told(list(map(str, arguments)))
    assert code == 0, (arguments, errors)


def _checkpoint(folder: Path) -> Path:
    from tests.tiny import write_checkpoint

    child = os.fork()  # so that no thread of PyTorch starts in this process, which is split again
    if child == 0:
        write_checkpoint(folder / "model")
        os._exit(0)
    assert wait(child) == 0
    return folder / "model"


def _data(folder: Path) -> Path:
    from tests.tiny import image

    data = folder / "data"
    data.mkdir()
    lines = []
    for number in range(8):
        image(number).save(data / f"{number}.png")
        entry = {
            "id": str(number),
            "image": f"{number}.png",
            "question": "what is it ?",
            "answers": ["a"],
            "category": "c",
        }
        lines.append(json.dumps(entry))
    (data / "data.jsonl").write_text("\n".join(lines) + "\n")
    return data


def _recipe(folder: Path, keep: int, more: str = "") -> Path:
    path = folder / f"keep-{keep}{'-more' if more else ''}.yaml"
    stage = f"- kind: prune\n  keep: {keep}\n  selector: uniform\n"
    path.write_text(f"version: 1\nname: keep-{keep}\nstages:\n{stage}{more}")
    return path

"""Publishing, with a fault at each of its system calls, one after the other.

A small command that writes as the verbs do is run in a process of its own for each call and each fault: the process
ends there, or the call fails. Then the output has to be the old artifact or the new one, whole; what a stranger has put
beside it must be untouched; and the same command must end right and leave nothing over.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import vtc.replacement
from vtc.artifact import check_output, publish, read_manifest, verify_files
from vtc.errors import VtcError
from vtc.resume import read_notes, write_notes
from vtc.staging import open_work

MANIFEST = {"kind": "thing", "schema": 1}
CALLS = ("open", "pread", "pwrite", "write", "ftruncate", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync")
ENDS = "ends"
FAULTS = (ENDS, errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EACCES)
_MADE = mmap.mmap(-1, 4)
"""How many calls the last run has made; memory that it shares with this process."""
REFUSED, WRONG, ENDED = 7, 8, 9


def command(out: Path, text: str) -> None:
    """Write a thing as a verb does: resumable, and whole or not at all."""
    check_output(out, "thing")
    with open_work(out, "test") as work:
        work.claim(".notes*", "a.txt", "sub/*.txt")
        notes = read_notes(work.path / ".notes", dict[str, str])
        if notes is None or notes.get("text") != text:
            work.clear()
        (work.path / "sub").mkdir(exist_ok=True)
        (work.path / "a.txt").write_text(text)
        write_notes(work.path / ".notes", {"text": text})
        (work.path / "sub/b.txt").write_text(text)
        publish(work, out, MANIFEST, ["a.txt", "sub/b.txt"])


def content(out: Path) -> str | None:
    """What the thing says; None where there is none.

    Raises
    ------
    AssertionError
        If it is not whole.
    """
    if not out.exists():
        return None
    verify_files(out, read_manifest(out, "thing", 1)["files"])
    texts = {(out / name).read_text() for name in ("a.txt", "sub/b.txt")}
    assert len(texts) == 1, texts
    return texts.pop()


def run(call: int, fault: str | int, exchange: bool, body: Callable[[], None]) -> int:
    """Run a body in a process of its own with a fault at call number `call`; returns how it ended.

    Returns
    -------
    int
        0 where all went well, also because there are fewer calls.
    """
    child = os.fork()
    if child == 0:
        code = WRONG
        stderr = os.fdopen(os.dup(2), "w")
        try:
            _inject(call, fault, exchange)
            body()
            code = 0
        except VtcError as error:
            code = REFUSED if "\n" not in str(error) else WRONG
        except BaseException as error:
            print(f"call {call}, {fault}: {error!r}", file=stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _inject(call: int, fault: str | int, exchange: bool) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    calls = 0

    def faulty(real: Callable[..., Any]) -> Callable[..., Any]:
        def with_fault(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            _MADE[:4] = calls.to_bytes(4, "little")
            if calls == call:
                if isinstance(fault, str):
                    os._exit(ENDED)
                raise OSError(fault, os.strerror(fault), *[arg for arg in args[:1] if isinstance(arg, str | Path)])
            return real(*args, **options)

        return with_fault

    for name in CALLS:
        setattr(os, name, faulty(getattr(os, name)))
    io.open = faulty(io.open)  # type: ignore[assignment]
    vtc.replacement.exchange = faulty(vtc.replacement.exchange if exchange else lambda *_: False)


def attempt(call: int, fault: str | int, *, replaced: bool, exchange: bool) -> int:
    """One fault and what is to hold after it; returns how the process ended."""
    with TemporaryDirectory() as folder:
        out, beside = Path(folder, "thing"), Path(folder, ".thing.notes")
        beside.write_text("mine")
        old = "old" if replaced else None
        if replaced:
            command(out, "old")
        ended = run(call, fault, exchange, lambda: command(out, "new"))
        where = f"call {call}, {fault}, replaced: {replaced}, exchange: {exchange}"
        assert ended != WRONG, where
        between = out.with_name(".thing.old")
        found = content(between if not exchange and replaced and not out.exists() else out)
        assert found in (old, "new"), (where, found)
        command(out, "new")
        assert content(out) == "new", where
        left = sorted(path.name for path in Path(folder).iterdir())
        assert left == [".thing.notes", "thing"], (where, left)
        assert sorted(path.name for path in out.iterdir()) == ["a.txt", "manifest.json", "sub"], where
        assert beside.read_text() == "mine"
        return ended


def every_call(faults: Sequence[str | int] = FAULTS, each: int = 1) -> dict[str, Counter[str]]:
    """Each fault at each call in turn, for new and replaced outputs, with and without an exchange of directories.

    Returns
    -------
    dict of fault to how many there were, and how the command took them
    """
    found: dict[str, Counter[str]] = {}
    for replaced, exchange in product((False, True), repeat=2):
        calls = calls_of(replaced=replaced, exchange=exchange)
        for fault in faults:
            counts = found.setdefault(fault if isinstance(fault, str) else errno.errorcode[fault], Counter())
            for call in range(1, calls + 1, each):
                ended = attempt(call, fault, replaced=replaced, exchange=exchange)
                counts[{0: "went on", REFUSED: "refused in one line", ENDED: "ended"}[ended]] += 1
    return found


def calls_of(*, replaced: bool, exchange: bool) -> int:
    """How many calls a run makes."""
    with TemporaryDirectory() as folder:
        out = Path(folder, "thing")
        if replaced:
            command(out, "old")
        assert run(0, ENDS, exchange, lambda: command(out, "new")) == 0
    return int.from_bytes(_MADE[:4], "little")

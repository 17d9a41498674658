r"""A process that runs command lines of ``vtc`` one after another, each through the program's own error boundary.

It reads requests as JSON lines from stdin and answers them on stdout::

    {"cwd": "...", "args": ["check", "recipe.yaml"]}
    {"code": 2, "out": "", "err": "recipe.yaml:3: ...\n", "seconds": 0.002, "grown": 12345}

`grown` is by how many bytes the process grew at most during the command.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
import traceback
from typing import Any

ROOM = 4 * 2**30
"""Bytes that a command may ask the system for, so that one without bounds does not take the whole machine."""
TOLD = 20_000
"""Characters of a stream that are answered."""
COLLECT = 100
"""Commands between two collections of garbage."""


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    requests = os.fdopen(os.dup(0), encoding="ascii")
    streams = os.memfd_create("out"), os.memfd_create("err")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    from tests.fuzz import verbs

    verbs.add()
    if "--torch" in sys.argv:
        verbs.warm()
    gc.freeze()
    _limit(ROOM)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for count, line in enumerate(requests):
        if count % COLLECT == 0:
            gc.collect()
        print(json.dumps(_answer(json.loads(line), streams)), file=answers, flush=True)


def _answer(request: dict[str, Any], streams: tuple[int, int]) -> dict[str, Any]:
    os.chdir(request["cwd"])
    for stream in streams:
        os.ftruncate(stream, 0)
        os.lseek(stream, 0, os.SEEK_SET)
    before, begin = _reset_peak(), time.perf_counter()
    code = _run(request["args"])
    seconds = time.perf_counter() - begin
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    out, err = (os.pread(stream, TOLD, 0).decode(errors="backslashreplace") for stream in streams)
    return {"code": code, "out": out, "err": err, "seconds": seconds, "grown": _peak() - before}


def _run(args: list[str]) -> int:
    from vtc.cli import main as vtc

    try:
        vtc(args, prog_name="vtc")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # what the boundary let through would be a traceback for the user
        traceback.print_exc()
        return 1
    return 0


# Memory -----------------------------------------------------------------------------------------------------


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{name}:"))


def _reset_peak() -> int:
    """Forget the peak so far, and return the bytes that are resident now."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _limit(room: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + room, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()

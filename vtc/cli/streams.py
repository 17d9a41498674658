"""The three streams of a command, made safe: closed ones are opened on nothing, broken ones are told of once.

- A closed stream (``2>&-``) leaves its number free, and the next file that is opened gets it: what a library prints
  would go into that file. So each number is taken before any file is opened.
- What cannot be written to stdout is lost data: an error. What cannot be written to stderr is not worth one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from vtc.errors import InputError
from vtc.machine import REASONS

CLOSED_PIPE = 141
"""Exit code where the reader of stdout has left: what a shell makes of SIGPIPE."""


class OutputLost(InputError):
    """What the command has to say cannot be written to stdout."""


class ReaderLeft(Exception):
    """Nobody reads stdout any more: the end of a pipeline has seen enough (``| head -1``)."""


class Output(io.TextIOWrapper):
    """Stdout: says what is wrong where it cannot be written."""

    def write(self, text: str, /) -> int:
        """Write text; raise `OutputLost` where it is lost, `ReaderLeft` where nobody reads."""
        with _told():
            return super().write(text)

    def flush(self) -> None:
        """Write what is waiting; raise as `write` does."""
        with _told():
            super().flush()


class Notes(io.TextIOWrapper):
    """Stderr: drops what cannot be written, for the command's work matters more than its notes."""

    def write(self, text: str, /) -> int:
        """Write text, or not."""
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is waiting, or not."""
        with contextlib.suppress(OSError):
            super().flush()


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Make this process's streams safe while the body runs; those that a caller has put in their place stay."""
    lost = _take_numbers()
    before = sys.stdin, sys.stdout, sys.stderr
    if before[2] is None or before[2] is sys.__stderr__:
        sys.stderr = _stream(Notes, before[2], 2)
    if before[1] is None or before[1] is sys.__stdout__:
        sys.stdout = _stream(Output, before[1], 1)
    if before[0] is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (lives as long as the process)
    if lost:
        print("note: stdout is closed, so what this command prints is lost", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        own = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Output | Notes)]
        sys.stdin, sys.stdout, sys.stderr = before
        for stream in own:  # their buffers are the process's
            try:
                stream.detach()
            except (OutputLost, ReaderLeft):
                _abandon_stdout()
                stream.detach()


def _abandon_stdout() -> None:
    """Let what waits for a broken stdout go to nothing, so that Python does not try it again when it ends."""
    with contextlib.suppress(OSError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.close(nothing)


def _take_numbers() -> bool:
    """Open each closed stream on nothing; return whether stdout was closed."""
    lost = False
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            os.set_inheritable(number, True)
            lost = lost or number == 1
    return lost


def _stream(kind: type[io.TextIOWrapper], before: TextIO | None, number: int) -> io.TextIOWrapper:
    """Wrap a stream, with escapes for letters that its encoding lacks."""
    if isinstance(before, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            before.flush()
        with contextlib.suppress(OSError):  # its number may have been given to another kind of file since
            encoding, by_line = before.encoding, before.line_buffering
            return kind(before.buffer, encoding=encoding, errors="backslashreplace", line_buffering=by_line)
    buffer = open(number, "wb", closefd=False)  # noqa: SIM115 (as above)
    return kind(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderLeft from None
    except OSError as error:
        reason = "it is closed" if error.errno == errno.EBADF else REASONS.get(error.errno or 0, error.strerror)
        raise OutputLost(f"stdout: cannot be written, {reason}") from error

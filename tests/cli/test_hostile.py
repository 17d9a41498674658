"""Every verb answers every hostile name, stream and limit in a line that a terminal can show, and an exit code."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import jinja2
import pytest
import safetensors
import yaml
from click.testing import CliRunner

from vtc.cli import VERBS, main
from vtc.cli.faults import describe
from vtc.errors import InputError
from vtc.shown import LINE

GIVEN = {
    "ls": ("ls", "recipes", "{}"),
    "inspect": ("inspect", "{}", "--recipe", "none"),
    "check": ("check", "{}"),
    "compress": ("compress", "{}", "--recipe", "none", "-o", "out"),
    "export": ("export", "{}", "-o", "out"),
    "optimize": ("optimize", "{}"),
    "build": ("build", "{}", "--target", "rtx"),
    "run": ("run", "{}", "--prompt", "?"),
    "calibrate": ("calibrate", "{}", "--experts", "-o", "out"),
    "place": ("place", "m", "--experts", "{}", "--devices", "2"),
    "show": ("show", "{}", "--recipe", "none", "-o", "out.png"),
    "validate": ("validate", "{}"),
    "bench": ("bench", "{}"),
    "doctor": ("doctor", "{}"),
}
"""Verb → a command that would read what {} names first."""

NAMES = {
    "escape": "\x1b[2J\x1b]0;title\x07.yaml",
    "c1": "\x9b31m.yaml",
    "bidi": "\u202egnp.\u2066exe.yaml",
    "lines": "a\nerror: forged\r\u2028\x85.yaml",
    "markup": "[/x][bold]:warning:.yaml",
    "surrogate": "\udc80\udcff.yaml",
    "word": "x" * 300,
    "long name": "x" * 300 + ".yaml",
    "long path": "x/" * 4000 + ".yaml",
    "blanks": "x " * 3000 + ".yaml",
    "inside a file": "file.yaml/x.yaml",
    "loop": "loop.yaml",
    "pipe": "pipe.yaml",
    "device": "zero.yaml",
    "empty file": "file.yaml",
    "empty": "",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a file, a loop of links, a named pipe, and a link to a device without end."""
    place = tmp_path_factory.mktemp("hostile")
    (place / "file.yaml").touch()
    (place / "loop.yaml").symlink_to("loop.yaml")
    (place / "zero.yaml").symlink_to("/dev/zero")
    os.mkfifo(place / "pipe.yaml")
    return place


def test_every_verb_is_tried() -> None:
    assert set(GIVEN) == set(VERBS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", VERBS)
def test_hostile_name_is_one_line_that_a_terminal_can_show(
    verb: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(main, [part.replace("{}", NAMES[name]) for part in GIVEN[verb]], prog_name="vtc")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    line = result.stderr.removesuffix("\n")
    assert line.isprintable()
    assert len(line) < LINE + 100
    assert "unexpected " not in line.replace("unexpected extra", "")


# Streams and signals ---------------------------------------------------------------------------------------------

STREAMS = {
    "no stdin": ("<&-", 0, True, "next:"),
    "no stdout": (">&-", 0, False, "note: stdout is closed"),
    "no stderr": ("2>&-", 0, True, ""),
    "no streams": ("<&- >&- 2>&-", 0, False, ""),
    "full stdout": (">/dev/full", 2, False, "error: stdout: cannot be written, no space left"),
    "full stderr": ("2>/dev/full", 0, True, ""),
    "no reader": ("| true", 141, False, ""),
    "no reader of notes": ("2> >(true)", 0, True, ""),
}
"""Redirection → exit code, whether stdout has the answer, how stderr begins."""


@pytest.mark.parametrize("stream", STREAMS)
def test_closed_and_broken_streams(stream: str) -> None:
    redirection, code, answered, told = STREAMS[stream]
    command = f"trap '' PIPE; {sys.executable} -m vtc.cli ls models {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.startswith("model") == answered
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) <= 2
    assert "Error" not in done.stderr


def test_files_do_not_get_the_numbers_of_closed_streams() -> None:
    """What a library prints to stderr would go into the file that got its number."""
    code = (
        "import os, sys; from vtc.cli.streams import safe_streams\n"
        "with safe_streams(): handle = os.open(os.devnull, os.O_RDONLY)\n"
        "os._exit(handle)"
    )
    command = f'{sys.executable} -c "{code}" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", command], check=False).returncode > 2


SLEEPER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
import sys, time, types, click, vtc.cli
@click.command()
def command():
    print("begun", flush=True)
    time.sleep(60)
sys.modules["sleeper"] = module = types.ModuleType("sleeper")
module.command = command
vtc.cli.VERBS["sleep"] = ("sleeper", "command", "Sleep.")
vtc.cli.main(["sleep"], prog_name="vtc")
"""


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")],
    ids=["SIGINT", "SIGTERM"],
)
def test_signal_is_a_line_and_a_code(number: signal.Signals, code: int, line: str) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.communicate() == ("", line)
    assert process.returncode == code


# Libraries -------------------------------------------------------------------------------------------------------


def test_libraries_are_silent_and_vtc_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def noisy() -> None:
        warnings.warn_explicit("w", UserWarning, "x.py", 1, module="transformers.x")
        warnings.warn_explicit("slower", UserWarning, "y.py", 1, module="vtc.runtime.y")
        logging.getLogger("transformers.x").error("note of transformers")
        logging.getLogger("vtc.models.z").warning("note: %s: kept", "\x1b[1m")
        raise InputError("no luck")

    module = ModuleType("noisy_verb")
    module.noisy = noisy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "noisy_verb", module)
    monkeypatch.setitem(VERBS, "fail", ("noisy_verb", "noisy", "Fail."))
    result = CliRunner().invoke(main, ["fail"], prog_name="vtc")
    assert result.stderr.splitlines() == ["note: slower", "note: \\x1b[1m: kept", "error: no luck"]


# What exceptions mean --------------------------------------------------------------------------------------------


def raised(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing raised")


def wrapped(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


MEANT = {
    "handles": (OSError(errno.EMFILE, "x", "a.png"), "error: a.png: too many open files"),
    "handles, Rust": (Exception("Too many open files (os error 24)"), "error: too many open files"),
    "handles, ONNX Runtime": (RuntimeError("Load model from x failed: system error number 24"), "error: too many open"),
    "handles, hidden": (wrapped(ValueError("bad"), OSError(errno.ENFILE, "x", "b")), "error: b: the system has too"),
    "memory": (MemoryError(), "error: not enough memory"),
    "memory, PyTorch": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "error: not enough mem"),
    "memory, C++": (RuntimeError("std::bad_alloc"), "error: not enough memory"),
    "threads": (RuntimeError("can't start new thread"), "error: the system starts no further thread"),
    "threads, C++": (RuntimeError("pthread_create failed, error code: 11"), "error: the system starts no further"),
    "memory, CUDA": (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), "error: not enough memory"),
    "memory, ONNX Runtime": (RuntimeError("Failed to allocate memory for requested buffer"), "error: not enough mem"),
    "disk": (OSError(errno.ENOSPC, "x", "out/x"), "error: out/x: no space left on the disk"),
    "permission": (PermissionError(errno.EACCES, "x", "out"), "error: out: permission denied"),
    "read-only": (OSError(errno.EROFS, "x", "out"), "error: out: the file system is read-only"),
    "missing": (FileNotFoundError(errno.ENOENT, "x", "a"), "error: a: no such file or directory"),
    "directory": (IsADirectoryError(errno.EISDIR, "x", "a"), "error: a: is a directory, not a file"),
    "file": (NotADirectoryError(errno.ENOTDIR, "x", "a/b"), "error: a/b: a part of the path is a file"),
    "loop": (OSError(errno.ELOOP, "x", "a"), "error: a: its symbolic links lead in a circle"),
    "long": (OSError(errno.ENAMETOOLONG, "x", "a" * 5000), "error: aaa"),
    "busy": (OSError(errno.EBUSY, "x", "a"), "error: a: device or resource busy"),
    "JSON": (raised(lambda: json.loads("{")), "error: a file is not JSON (Expecting"),
    "JSON, digits": (raised(lambda: json.loads("9" * 5000)), "error: a file is not JSON (Exceeds"),
    "JSON, depth": (raised(lambda: json.loads("[" * 100_000)), "error: a file is not JSON (it is nested too deeply)"),
    "YAML": (raised(lambda: yaml.safe_load("[")), "error: a file is not YAML"),
    "text": (raised(lambda: b"\xff".decode()), "error: a file is not UTF-8 text"),
    "safetensors": (raised(lambda: safetensors.deserialize(b"1")), "error: a file is not safetensors"),
    "template": (raised(lambda: jinja2.Template("{{")), "error: a file is not a chat template"),
    "template, run": (raised(lambda: jinja2.Template("{{ 1 / 0 }}").render()), "error: a file is not a chat template"),
}


@pytest.mark.parametrize("case", MEANT)
def test_what_the_user_can_mend_is_exit_2_with_the_right_reason(case: str) -> None:
    error, start = MEANT[case]
    line, code = describe(error)
    assert code == 2
    assert line.startswith(start)
    assert "\n" not in line
    assert len(line) < LINE + 100


BUGS = (
    KeyError("no space left (os error 28)"),
    AttributeError("x"),
    ValueError("x"),
    RuntimeError("x"),
    RecursionError("x"),
    OSError(errno.EBADF, "x"),
    raised(lambda: json.dumps(float("nan"), allow_nan=False)),
)


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_a_bug_stays_unexpected(error: Exception) -> None:
    line, code = describe(error)
    assert code == 1
    assert line.startswith(f"unexpected {type(error).__name__}: ")


def test_a_stream_whose_number_became_another_kind_of_file_is_written(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "read, write = os.pipe()\n"
        "os.dup2(write, 2)\n"
        "from vtc.cli import main\n"
        "try:\n    main(['no-such-verb'])\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "sys.stderr.flush(); os.close(write)\n"
        "assert b\"no verb 'no-such-verb'\" in os.read(read, 9999)\n"
    )
    with (tmp_path / "file").open("wb") as file:
        assert subprocess.run([sys.executable, "-c", program], stderr=file).returncode == 0


@pytest.mark.parametrize("verb", [("ls", "recipes"), ("inspect", "reference")])
def test_a_directory_that_is_gone_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = CliRunner().invoke(main, verb, prog_name="vtc")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "does not exist any more" in result.stderr

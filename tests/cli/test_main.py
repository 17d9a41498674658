"""The `vtc` command: quick to start, and every error is a line and an exit code."""

from __future__ import annotations

import resource
import subprocess
import sys
from types import ModuleType

import click
import pytest
from click.testing import CliRunner, Result

from vtc.cli import VERBS, main
from vtc.errors import (
    BundleError,
    GateFailed,
    GateInconclusive,
    InputError,
    MissingDependency,
    ModelError,
    ParityError,
    RecipeError,
    VtcError,
)


def vtc(*args: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, args, prog_name="vtc")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A verb `fail` that raises the module's `error`."""
    module = ModuleType("failing_verb")

    @click.command()
    def command() -> None:
        raise module.error

    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "failing_verb", module)
    monkeypatch.setitem(VERBS, "fail", ("failing_verb", "command", "Fail."))
    return module


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(verb: str) -> None:
    result = vtc(verb, "--help")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"Usage: vtc {verb}")


def test_examples_in_help_keep_their_lines() -> None:
    text = CliRunner().invoke(main, ["run", "--help"]).stdout
    assert "\\b" not in text
    assert '  vtc run out/bundle --image photo.jpg --prompt "What is in the picture?"\n' in text


def test_help_lists_the_verbs() -> None:
    for args in ([], ["--help"], ["-h"]):
        result = vtc(*args)
        assert result.exit_code == 0
        assert all(verb in result.stdout for verb in VERBS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vtc.cli import main; main(['--help'], standalone_mode=False); "
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'numpy', 'pydantic', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_takes_less_than_300_ms() -> None:
    """Processor time, which a busy machine does not change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "vtc.cli", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_version() -> None:
    result = vtc("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("vtc ")


@pytest.mark.parametrize(
    ("args", "start", "end"),
    [
        (["inspct"], "vtc: no verb 'inspct', did you mean 'inspect'?", "(vtc --help)"),
        (["--nope"], "vtc: No such option", "(vtc --help)"),
        (["check"], "vtc check: Missing argument 'RECIPE'", "(vtc check --help)"),
        (["check", "none", "--nope"], "vtc check: No such option", "(vtc check --help)"),
    ],
)
def test_usage_error_is_one_line(args: list[str], start: str, end: str) -> None:
    result = vtc(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(start)
    assert line.endswith(end)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (VtcError("no luck"), 1),
        (InputError("no luck"), 2),
        (ModelError("no luck"), 2),
        (BundleError("no luck"), 2),
        (MissingDependency("no luck"), 2),
        (GateFailed("no luck"), 3),
        (ParityError("no luck"), 4),
        (GateInconclusive("no luck"), 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_understood_error_is_one_line_and_its_code(failing: ModuleType, error: VtcError, code: int) -> None:
    failing.error = error
    result = vtc("fail")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == "error: no luck\n"


def test_recipe_error_is_a_line_a_fault(failing: ModuleType) -> None:
    failing.error = RecipeError("a.yaml:1: x\na.yaml:2: y")
    result = vtc("fail")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["a.yaml:1: x", "a.yaml:2: y"]


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ValueError("a\nb"), "unexpected ValueError: a b (vtc --debug shows the traceback)", 1),
        (
            OSError(28, "No space left on device", "out/x"),
            "error: out/x: no space left on the disk; free some and run the same command again",
            2,
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "error: this needs torch: pip install 'vtc[compress]'",
            2,
        ),
        (
            ModuleNotFoundError("No module named 'x'", name="x"),
            "unexpected ModuleNotFoundError: No module named 'x' (vtc --debug shows the traceback)",
            1,
        ),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
    ids=["unexpected", "disk", "extra", "module", "ctrl-c"],
)
def test_other_error_is_one_line(failing: ModuleType, error: BaseException, line: str, code: int) -> None:
    failing.error = error
    result = vtc("fail")
    assert result.exit_code == code
    assert result.stderr.splitlines() == [line]


def test_debug_shows_the_traceback(failing: ModuleType) -> None:
    failing.error = InputError("no luck")
    result = vtc("--debug", "fail")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: no luck\n")


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m vtc.cli ls recipes | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("recipe")
    assert done.stderr in ("", "next: vtc ls recipes fastervlm-25\n")

"""An option has one name in all verbs, is given once where it counts once, and every verb names the next."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tests.evaluate.conftest import pruned_bundle
from tests.tiny import image
from vtc.cli import VERBS, main
from vtc.cli.verb import FORMER_NAMES

__all__ = ["pruned_bundle"]

OTHER_NAMES = {"--output", "--limit", "--count", "--new-tokens", "--recipe-name", "--num-samples"}
"""What options were called, or could be, that are --out, --samples, --max-new-tokens and --recipe."""


def vtc(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vtc")


def options_of(verb: str) -> set[str]:
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    return {name for option in command.params for name in option.opts if name.startswith("--")}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_has_a_name_of_its_own(verb: str) -> None:
    assert not options_of(verb) & OTHER_NAMES


def test_former_names_lead_to_options_that_there_are() -> None:
    for verb, names in FORMER_NAMES.items():
        assert set(names.values()) <= options_of(verb)
        assert not set(names) & options_of(verb)


@pytest.mark.parametrize("spelling", [("--output", "{out}"), ("--output={out}",)])
def test_former_name_is_taken_with_a_note(pruned_bundle: Path, tmp_path: Path, spelling: tuple[str, ...]) -> None:
    out = tmp_path / "bench.json"
    image(0).save(tmp_path / "a.png")
    spelt = [part.replace("{out}", str(out)) for part in spelling]
    quick = ("--repeats", "1", "--warmup", "0", "--new-tokens", "2", "--no-memory", "--provider", "cpu", "--json")
    result = vtc("bench", pruned_bundle, "--image", tmp_path / "a.png", *quick, *spelt)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[:2] == [
        "note: --new-tokens is called --max-new-tokens now; the former name goes with vtc 0.3",
        "note: --output is called --out now; the former name goes with vtc 0.3",
    ]
    assert json.loads(out.read_text()) == json.loads(result.stdout)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["inspect", "reference", "--recipe", "random", "--recipe", "uniform"],
            "vtc inspect: --recipe is given 2 times, and can be given once (vtc inspect --help)",
        ),
        (
            ["compress", "reference", "--recipe", "none", "-o", "a", "--out", "b", "-o", "c"],
            "vtc compress: --out is given 3 times, and can be given once (vtc compress --help)",
        ),
    ],
)
def test_what_counts_once_is_refused_twice(args: list[str], line: str) -> None:
    result = vtc(*args)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{line}\n")


def test_what_counts_each_time_is_taken_twice() -> None:
    sets = ("--set", "stages.0.keep=9", "--set", "stages.0.keep=7", "--json", "--json")
    assert json.loads(vtc("inspect", "reference", "--recipe", "uniform", *sets).stdout)["plan"]["keep"] == 7


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["ls", "models"], "next: vtc inspect reference --recipe fastervlm-25"),
        (["ls", "recipes", "uniform"], "next: vtc inspect reference --recipe uniform"),
        (["check", "uniform"], "next: vtc inspect reference --recipe uniform"),
        (
            ["inspect", "reference", "--recipe", "uniform", "--json"],
            "next: vtc compress reference --recipe uniform -o out/compressed",
        ),
        (["doctor"], "next: vtc ls models"),
    ],
)
def test_the_next_verb_is_named_on_stderr(args: list[str], line: str) -> None:
    assert vtc(*args).stderr.splitlines()[-1] == line


def test_completion_is_told() -> None:
    assert "_VTC_COMPLETE=bash_source vtc" in vtc("--help").stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_tells_every_option(verb: str) -> None:
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    untold = [option.name for option in command.params if isinstance(option, click.Option) and not option.help]
    assert untold == []


NUMBERS = click.types.IntParamType | click.types.FloatParamType


def given(needed: click.Parameter) -> list[str]:
    """Words that give a verb what it needs."""
    if not isinstance(needed, click.Option):
        return ["x"]
    value = "1" if isinstance(needed.type, NUMBERS) else "x"
    return [needed.opts[0]] if needed.is_flag else [needed.opts[0], value]


@pytest.mark.parametrize("value", ["nan", "inf", "1e30", "-inf", "9" * 20, "9" * 5000, "0x10"])
@pytest.mark.parametrize("verb", VERBS)
def test_no_option_takes_what_is_no_number(verb: str, value: str) -> None:
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    for option in command.params:
        if isinstance(option.type, NUMBERS):
            needed = [word for one in command.params if one.required and one != option for word in given(one)]
            result = vtc(verb, *needed, option.opts[-1], value)
            assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
            assert option.opts[-1] in result.stderr

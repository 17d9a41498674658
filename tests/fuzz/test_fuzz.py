"""Some seconds of fuzzing in each area, always the same cases, and every seed: what once failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.areas import AREAS
from tests.fuzz.campaign import campaign, replay
from tests.fuzz.case import Case, Change, read_case
from tests.fuzz.changes import MOST_BYTES, apply
from tests.fuzz.grid import VALUES, grid
from tests.fuzz.running import GROWTH, Runner, judge
from tests.fuzz.shrink import shrink

SEEDS = Path(__file__).parent / "seeds"
SEED = 20
CASES = {"recipes": 300, "images": 200, "data": 200, "templates": 60, "bundles": 80, "checkpoints": 25, "states": 25}
"""Of each area; of the others :data:`FEW`."""
FEW = 8


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """One worker with torch and one without, for all tests of this file."""
    running = Runner(tmp_path_factory.mktemp("fuzz"))
    yield running
    running.close()


@pytest.mark.xdist_group("fuzz")
@pytest.mark.parametrize("area", AREAS)
def test_no_drawn_case_ends_badly(area: str, runner: Runner, tmp_path: Path) -> None:
    """Each is refused in a line, or accepted where it may be."""
    told: list[str] = []
    most = CASES.get(area, FEW)
    counts = campaign(runner, tmp_path, [area], SEED, lambda _, cases: cases < most, told.append)
    assert set(counts[area].outcomes) <= {"accepted", "refused"}, "\n".join(told)


@pytest.mark.xdist_group("fuzz")
@pytest.mark.parametrize("area", AREAS)
def test_no_seed_ends_badly(area: str, runner: Runner) -> None:
    """What was found once does not come back."""
    found = {path.stem: replay(runner, read_case(path, area)) for path in sorted((SEEDS / area).glob("*.json"))}
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_every_seed_belongs_to_an_area() -> None:
    assert {path.name for path in SEEDS.iterdir() if path.is_dir()} <= set(AREAS)


# The fuzzer itself ------------------------------------------------------------------------------------------

WRONG: Change = {"do": "remove", "file": "x", "is": "wrong"}
RIGHT: Change = {"do": "remove", "file": "x", "is": "right"}
ODD: Change = {"do": "remove", "file": "x"}
GOOD = {"code": 2, "out": "", "err": "error: no\n", "seconds": 0.1, "grown": 0}


def _case(*changes: Change, verb: str = "chat") -> Case:
    return Case("templates", "plain", changes, (verb,))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({}, "refused"),
        ({"code": 0, "err": ""}, "accepted"),
        ({"err": "note: more\nerror: no\n"}, "refused"),
        ({"code": 1}, "exit code"),
        ({"code": 1, "err": "unexpected KeyError: 'x'\n"}, "unexpected"),
        ({"err": "Traceback (most recent call last):\n"}, "unexpected"),
        ({"err": ""}, "noise"),
        ({"err": "error: one\nerror: two\n"}, "noise"),
        ({"err": "error: \x1b[31mred\n"}, "noise"),
        ({"err": f"error: {'a' * 2000}\n"}, "noise"),
        ({"seconds": 11.0}, "hang"),
        ({"grown": GROWTH + 1}, "memory"),
        ({"lost": "died"}, "died"),
    ],
)
def test_a_bad_end_is_told_from_a_good_one(answer: dict[str, object], kind: str) -> None:
    assert judge(_case(ODD), {**GOOD, **answer}, Path(), Path()).kind == kind


@pytest.mark.parametrize(
    ("changes", "code", "kind"),
    [
        ((WRONG,), 0, "silent acceptance"),
        ((WRONG, RIGHT), 0, "silent acceptance"),
        ((WRONG,), 2, "refused"),
        ((RIGHT,), 2, "false refusal"),
        ((), 2, "false refusal"),
        ((RIGHT, ODD), 2, "refused"),
    ],
)
def test_wrong_input_must_be_refused_and_right_input_accepted(
    changes: tuple[Change, ...], code: int, kind: str
) -> None:
    assert judge(_case(*changes), {**GOOD, "code": code}, Path(), Path()).kind == kind


def test_shrinking_leaves_the_change_and_the_letters_that_matter() -> None:
    text: Change = {"do": "write", "file": "x", "text": "abcXdefY" * 4}
    case = _case(ODD, text, ODD, ODD)

    small = shrink(case, lambda other: any("XdefY" in change.get("text", "") for change in other.changes))

    assert small.changes == ({**text, "text": "XdefY"},)


@pytest.mark.xdist_group("fuzz")
@pytest.mark.parametrize("area", [name for name, area in AREAS.items() if area.documents])
def test_the_grid_puts_each_value_into_each_place(area: str, runner: Runner, tmp_path: Path) -> None:
    cases = list(grid(area, runner.bases(area), 0))

    assert len({json.dumps(case.changes) for case in cases}) > len(VALUES) * len(AREAS[area].documents)
    counts = campaign(runner, tmp_path, [area], 0, lambda _, done: done < FEW, print, grid)
    assert set(counts[area].outcomes) <= {"accepted", "refused"}
    assert counts[area].outcomes.total() == FEW


@pytest.mark.parametrize(
    "change",
    [
        {"do": "flip", "at": 0, "bits": 1},
        {"do": "patch", "at": 0, "hex": "00"},
        {"do": "cut", "share": 0.5},
        {"do": "copy", "to": "y"},
        {"do": "swap", "with": "y"},
        {"do": "extend", "bytes": 1},
        {"do": "tensor", "tensor": 0, "at": 0, "value": 0},
        {"do": "graph", "tensor": 0, "at": 0, "value": 0},
        {"do": "set", "path": ["a"], "value": 0},
        {"do": "set row", "line": 0, "path": ["a"], "value": 0},
    ],
    ids=lambda change: change["do"],
)
def test_a_huge_file_is_never_read_to_be_changed(change: Change, tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"a": 1}')
    (tmp_path / "y").write_text("y")

    apply([{"do": "extend", "file": "x", "bytes": MOST_BYTES}, {"file": "x", **change}], tmp_path)

    assert (tmp_path / "x").stat().st_size == MOST_BYTES + 8
    assert (tmp_path / "y").read_text() == "y"


def test_a_seed_says_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    case = _case({"do": "set", "file": "x", "path": ["a", 0], "value": float("inf")}, ODD)

    case.write(tmp_path / "seed.json", "a remark \x1b")

    assert read_case(tmp_path / "seed.json", "templates") == case

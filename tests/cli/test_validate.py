"""`vtc validate` as a user meets it: JSON on stdout, a file, an exit code for each outcome of the gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.evaluate.fakes import contestant, dataset
from tests.tiny import image
from vtc.cli import main
from vtc.data import datasets
from vtc.evaluate import comparison
from vtc.evaluate.comparison import Comparison


def vtc(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vtc")


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Numbers of the items, of 400, that the compressed model gets wrong."""
    data = dataset(400)
    mistakes: set[int] = set()

    def field(*_: object) -> Comparison:
        rival = contestant("blind", data, wrong=set(range(200)), image_tokens=0)
        return Comparison(contestant("original", data), contestant("small", data, wrong=mistakes), [rival])

    monkeypatch.setattr(datasets, "load_dataset", lambda *_: data)
    monkeypatch.setattr(comparison, "open_comparison", field)
    return mistakes


@pytest.mark.parametrize(
    ("count", "code", "line"),
    [
        (0, 0, "next: vtc bench small --against reference"),
        (80, 3, "error: gate failed: retention"),
        (20, 5, "error: gate inconclusive"),
    ],
)
def test_exit_code_tells_the_outcome(wrong: set[int], count: int, code: int, line: str) -> None:
    wrong.update(range(count))
    result = vtc("validate", "small", "--against", "reference")
    assert result.exit_code == code, result.output
    assert line in result.stderr
    assert "gate:" in result.stdout
    assert "interval" not in result.stderr  # the reasons stand in the report, and there alone


def test_json_is_all_that_stdout_holds(wrong: set[int], tmp_path: Path) -> None:
    wrong.update(range(80))
    result = vtc("validate", "small", "--against", "reference", "--json", "-o", tmp_path / "report.json")
    report = json.loads(result.stdout)
    assert result.exit_code == 3
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["kind"] == "validate"
    entry = report["results"]["small"]
    assert set(entry) >= {"accuracy", "base", "retention", "ci95", "n", "by_capability"}
    assert set(report["fidelity"]) >= {"top1_agreement", "kld_mean", "kld_p99", "answer_agreement"}
    assert report["baselines"]["blind"]["accuracy"] == 0.5
    assert report["gate"]["status"] == "fail"


def test_limits_become_checks(wrong: set[int]) -> None:
    result = vtc(
        "validate",
        "s",
        "--against",
        "reference",
        "--min-retention",
        "0.5",
        "--min-top1",
        "0.9",
        "--max-kld",
        "0.1",
        "--json",
    )
    checks = json.loads(result.stdout)["gate"]["checks"]
    assert [(check["name"], check["limit"]) for check in checks] == [
        ("retention", 0.5),
        ("top1_agreement", 0.9),
        ("kld_mean", 0.1),
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--baselines", "oracle"], "oracle"),
        (["--samples", "0"], "samples"),
        (["--min-retention", "1"], "min-retention"),
        (["--data", "missing"], "no such file"),
        ([], "--against"),
    ],
)
def test_bad_input_is_one_line(args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = vtc("validate", *args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_data_line_without_a_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"id": 1}\n')
    result = vtc("validate", "x", "--against", "reference", "--data", tmp_path)
    assert result.exit_code == 2
    assert "data.jsonl:1: missing field" in result.stderr


def test_a_compressed_checkpoint_is_judged_on_own_data(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    image(0).save(data / "a.png")
    record = {"id": "1", "image": "a.png", "question": "how many ?", "answers": ["three"], "category": "counting"}
    (data / "data.jsonl").write_text(json.dumps(record) + "\n")
    done = vtc("compress", checkpoint, "--recipe", "uniform", "--set", "stages.0.keep=4", "-o", tmp_path / "c")
    assert done.exit_code == 0, done.output
    options = ("--data", data, "--max-new-tokens", "2", "--baselines", "uniform,blind", "--json")
    result = vtc("validate", tmp_path / "c", "--against", checkpoint, *options)
    assert result.exit_code == 5, result.output  # one image proves nothing
    report = json.loads(result.stdout)
    assert report["results"]["c"]["n"] == 1
    assert report["baselines"]["uniform"]["visual_tokens"] == 4
    assert vtc("validate", tmp_path / "c", *options).stdout == result.stdout  # it knows what it was made from
    alone = vtc("validate", "--against", checkpoint, *options)
    assert alone.exit_code == 0, alone.output

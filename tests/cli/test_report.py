"""Tables show what the report says; files are whole or not there."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmark.test_report import Clockwork
from tests.evaluate.fakes import contestant, dataset
from vtc.benchmark.report import bench
from vtc.cli.report import bench_tables, validate_tables, write_json
from vtc.errors import InputError
from vtc.evaluate.validate import validate


def shown(parts: list) -> str:  # type: ignore[type-arg]
    out = io.StringIO()
    console = Console(file=out, width=200)
    for part in parts:
        console.print(part, highlight=False)
    return out.getvalue()


def test_validation_is_shown_with_its_gate_and_what_it_means() -> None:
    data = dataset(100)
    rival = contestant("random", data, wrong=set(range(60)))
    report = validate(contestant("original", data), contestant("[small]", data, wrong={1, 2, 3, 4}), [rival], data)
    text = shown(validate_tables(report))
    for words in (
        "capability0",
        "96.0",
        "40.0",
        "[small]",
        "gate: inconclusive",
        "contains the limit",
        "KL divergence",
    ):
        assert words in text, words


def test_tokens_that_leave_the_decoder_early_are_told_by_their_average() -> None:
    data = dataset(10)
    exits = replace(contestant("exit", data, image_tokens=16), layer_average=6.5)
    text = shown(validate_tables(validate(contestant("original", data), exits, [], data)))
    assert "layer average" in text
    assert "6.5" in text


def test_the_original_alone_is_shown_without_a_gate() -> None:
    data = dataset(10)
    text = shown(validate_tables(validate(contestant("original", data), None, [], data)))
    assert "100.0" in text
    assert "gate" not in text


def test_speed_is_shown_with_its_terms() -> None:
    runners = Clockwork("original", [], times=[8.0]).runner(), Clockwork("small", [], times=[2.0]).runner()
    text = shown(bench_tables(bench(*runners, questions=1, repeats=3, warmup=0, memories=[None, None])))
    for words in ("8.00 (8.00)", "TTFT 4.00x [4.00, 4.00]", "selection", "small"):
        assert words in text, words


def test_speed_is_readable_in_80_columns() -> None:
    runners = Clockwork("original", [], times=[8.0]).runner(), Clockwork("small-bundle", [], times=[2.0]).runner()
    report = bench(*runners, questions=1, repeats=3, warmup=0, memories=[None, None])
    out = io.StringIO()
    Console(file=out, width=80).print(bench_tables(report)[0])
    lines = out.getvalue().splitlines()
    assert any("original" in line and "small-bundle" in line for line in lines)
    assert any(line.split() == ["TTFT,", "ms", "8.00", "(8.00)", "2.00", "(2.00)"] for line in lines)


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    write_json({"kind": "validate", "value": 0.5}, path)
    assert json.loads(path.read_text()) == {"kind": "validate", "value": 0.5}
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_report_that_fails_to_write_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write_json({"value": float("nan")}, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_directory_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_json({}, tmp_path / "missing" / "report.json")

"""Reports and pictures: their place is looked at before the work, and what is read or published stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.runtime.toy import make_toy, write_toy_bundle
from vtc.cli import main
from vtc.errors import InputError
from vtc.staging import open_work
from vtc.writing import check_place, write_whole

PLACES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no directory": ("none/r.json", lambda _: None, "there is no directory"),
    "a directory": ("place", lambda root: (root / "place").mkdir(), "exists and is no file"),
    "a pipe": ("place", lambda root: os.mkfifo(root / "place"), "exists and is no file"),
    "a device": ("place", lambda root: (root / "place").symlink_to("/dev/null"), "exists and is no file"),
    "a link that leads nowhere": ("place", lambda root: (root / "place").symlink_to("none"), "exists and is no file"),
    "in an artifact": ("bundle/onnx/r.json", lambda root: write_toy_bundle(make_toy(), root / "bundle"), "lies in"),
    "a manifest": ("bundle/manifest.json", lambda root: write_toy_bundle(make_toy(), root / "bundle"), "lies in"),
    "what is read": ("read.png", lambda _: None, "is what the command reads"),
    "a link to what is read": ("place", lambda root: (root / "place").symlink_to("read.png"), "is what the command"),
    "a long name": ("r" * 300, lambda _: None, "File name too long"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_places_where_something_would_be_lost_are_refused_before_the_work(tmp_path: Path, kind: str) -> None:
    name, make, words = PLACES[kind]
    (tmp_path / "read.png").write_bytes(b"x")
    make(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match=words):
        check_place(tmp_path / name, tmp_path / "read.png")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("verb", [("validate", "none"), ("bench", "nothing"), ("show", "a.png", "nothing")])
def test_verbs_look_at_the_place_first(tmp_path: Path, verb: tuple[str, ...]) -> None:
    place = tmp_path / "pipe.png"
    os.mkfifo(place)
    result = CliRunner().invoke(main, [*verb, "-o", str(place)], prog_name="vtc")
    assert result.exit_code == 2
    assert "exists and is no file" in result.stderr


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "report").write_bytes(b"old")
    write_whole(tmp_path / "report", b"new")
    assert (tmp_path / "report").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["report"]


def test_an_output_of_a_thousand_directories_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError), open_work(tmp_path / ("a/" * 1500) / "out", "vtc test"):
        pass

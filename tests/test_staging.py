"""Work directories: one command at a time, and nothing of anybody else's is followed, published or removed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vtc.artifact import check_output, publish, read_manifest, verify_files
from vtc.errors import BundleError, VtcError
from vtc.lock import LOCK
from vtc.resume import read_notes, write_notes
from vtc.staging import JOURNAL, open_work, staging_dir

MANIFEST = {"kind": "thing", "schema": 1}


def repr_short(value: str) -> str:
    return repr(value[:12])


def write(out: Path, text: str = "new", stop: bool = False) -> None:
    """Write a thing as verbs do; `stop` leaves it half done."""
    check_output(out, "thing")
    with open_work(out, "vtc test") as work:
        work.claim("a.txt", ".notes*")
        (work.path / "a.txt").write_text(text)
        (work.path / ".notes").write_text("{}")
        if not stop:
            publish(work, out, MANIFEST, ["a.txt"])


def whole(out: Path) -> str:
    """What a thing says."""
    verify_files(out, read_manifest(out, "thing", 1)["files"])
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "manifest.json"]
    return (out / "a.txt").read_text()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "thing"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A directory of the user's with files that are called as vtc's are."""
    directory = tmp_path / "mine"
    directory.mkdir()
    for name in ("a.txt", ".notes", ".bashrc", "pruner.safetensors", "pruner_notes.txt"):
        (directory / name).write_text("mine")
    return directory


def untouched(directory: Path) -> bool:
    return len(list(directory.iterdir())) == 5 and all(path.read_text() == "mine" for path in directory.iterdir())


def test_link_in_the_place_of_the_work_is_not_followed(out: Path, mine: Path) -> None:
    staging_dir(out).symlink_to(mine)
    write(out)
    assert whole(out) == "new"
    assert untouched(mine)
    assert staging_dir(out).is_symlink()


def test_directory_in_the_place_of_the_work_is_left_alone(
    out: Path, mine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine.rename(staging_dir(out))
    write(out)
    assert whole(out) == "new"
    assert untouched(staging_dir(out))
    assert caplog.messages == [f"{staging_dir(out)} is not vtc's work, or damaged; it is left alone"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"vtc": "work", "schema": 99}', "[" * 9999, "\0"], ids=repr_short
)
def test_damaged_journal_is_left_with_what_it_is_about(out: Path, content: str) -> None:
    write(out, stop=True)
    (staging_dir(out) / JOURNAL).write_text(content)
    write(out)
    assert whole(out) == "new"
    assert (staging_dir(out) / "a.txt").exists()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_anything_in_the_place_of_the_work(out: Path, make: Callable[[Path], object]) -> None:
    make(staging_dir(out))
    write(out)
    assert whole(out) == "new"


@pytest.mark.parametrize("name", ["b.txt", ".bashrc", "sub/a.txt", "link"])
def test_file_of_somebody_else_in_the_work_is_neither_published_nor_removed(out: Path, name: str) -> None:
    write(out, stop=True)
    file = staging_dir(out) / name
    file.parent.mkdir(exist_ok=True)
    file.symlink_to("/etc/passwd") if name == "link" else file.write_text("mine")
    with pytest.raises(BundleError, match=rf"{name} is not vtc's; move it away and run the same command again"):
        write(out)
    assert not out.exists()
    file.rename(out.with_name("mine"))
    write(out)
    assert whole(out) == "new"


def test_file_that_comes_while_a_command_runs_is_refused_too(out: Path) -> None:
    with open_work(out, "vtc test") as work:
        work.claim("a.txt")
        (work.path / "a.txt").write_text("new")
        (work.path / "b.txt").write_text("mine")
        with pytest.raises(BundleError, match=r"b\.txt is not vtc's"):
            publish(work, out, MANIFEST, ["a.txt"])
    assert (staging_dir(out) / "b.txt").read_text() == "mine"
    assert not out.exists()


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "sub/file"])
def test_artifact_with_files_of_the_user_is_not_replaced(out: Path, name: str) -> None:
    write(out, "old")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(BundleError, match=rf"{name} is not vtc's; move it away"):
        write(out)
    assert (out / name).read_text() == "mine"


def test_second_command_names_the_first(out: Path) -> None:
    with open_work(out, "vtc export"), pytest.raises(BundleError) as refused:
        write(out)
    assert str(refused.value) == (
        f"{out}: vtc export (process {os.getpid()}) is writing it; wait for it, or give another output"
    )
    write(out)
    assert [path.name for path in out.parent.iterdir()] == ["thing"]


def test_lock_of_a_command_that_was_killed_is_none(out: Path) -> None:
    code = f"from vtc.staging import *; work = open_work(Path({str(out)!r}), 'x'); work.__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert out.with_name(f".thing{LOCK}").exists()
    write(out)
    assert [path.name for path in out.parent.iterdir()] == ["thing"]


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text("mine"), Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")]
)
def test_something_else_in_the_place_of_the_lock_is_refused(out: Path, make: Callable[[Path], object]) -> None:
    lock = out.with_name(f".thing{LOCK}")
    make(lock)
    with pytest.raises(BundleError, match="is in the way of a lock; move it away"):
        write(out)
    assert lock.is_symlink() or not lock.is_file() or lock.read_text() == "mine"


def test_output_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file/thing", tmp_path / ("x" * 250)):
        with pytest.raises(VtcError, match="cannot be written"):
            write(place)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{}", '{"schema": 1}', '{"schema": 2, "notes": {}}', "[" * 9999, "9" * 9999, "\0\xff"],
    ids=repr_short,
)
def test_damaged_notes_are_thrown_away_with_a_line(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "notes"
    path.write_text(content)
    assert read_notes(path, dict[str, int]) is None
    assert caplog.messages == [f"{path}: notes of an interrupted run are damaged; its work is done again"]


def test_notes_that_were_changed_or_are_of_another_type_are_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    write_notes(path, {"a": 1})
    assert read_notes(path, dict[str, int]) == {"a": 1}
    assert read_notes(path, list[int]) is None
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    assert read_notes(path, dict[str, int]) is None
    assert read_notes(tmp_path / "none", dict[str, int]) is None


def test_a_file_that_has_another_name_elsewhere_is_not_written_through(out: Path, tmp_path: Path) -> None:
    with open_work(out, "vtc test") as work:
        work.claim("a.txt", "b.txt")
        (work.path / "a.txt").write_text("begun")
    os.link(work.path / "a.txt", tmp_path / "copy")  # as `cp -al` does
    os.link(work.path / JOURNAL, tmp_path / "journal")
    journal = (tmp_path / "journal").read_text()
    with open_work(out, "vtc test") as work:
        work.claim("c.txt")
        assert (work.path / "a.txt").read_text() == "begun"
        (work.path / "a.txt").write_text("done")
    assert ((tmp_path / "copy").read_text(), (tmp_path / "journal").read_text()) == ("begun", journal)

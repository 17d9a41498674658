"""Artifacts: whole or not at all, and any change is noticed."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from vtc import artifact
from vtc.artifact import check_output, inside, publish, read_manifest, staging_dir, verify_files
from vtc.errors import BundleError, VtcError

MANIFEST = {"kind": "thing", "schema": 1, "note": {"digest": "f" * 64}}


def write_work(out: Path, text: str = "one") -> Path:
    work = staging_dir(out)
    (work / "sub").mkdir(parents=True)
    (work / "a.txt").write_text(text)
    (work / "sub/b.txt").write_text("two")
    (work / ".notes.json").write_text("{}")
    return work


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "thing"
    publish(write_work(path), path, MANIFEST)
    return path


def load(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path, "thing", 1)
    verify_files(path, manifest["files"])
    return manifest


def test_published_directory_lists_its_files_and_nothing_is_left_beside_it(out: Path) -> None:
    manifest = load(out)
    assert set(manifest["files"]) == {"a.txt", "sub/b.txt"}
    assert manifest["note"] == MANIFEST["note"]
    assert [path.name for path in out.parent.iterdir()] == ["thing"]
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "manifest.json", "sub"]


def test_artifact_of_the_same_kind_is_replaced(out: Path) -> None:
    publish(write_work(out, "other"), out, MANIFEST)
    load(out)
    assert (out / "a.txt").read_text() == "other"
    assert [path.name for path in out.parent.iterdir()] == ["thing"]


@pytest.mark.parametrize("content", [{"kind": "else"}, [], None])
def test_anything_else_is_left_alone(tmp_path: Path, content: object) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / ("manifest.json" if content is not None else "holiday.jpg")).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="is not a thing of vtc's"):
        check_output(out, "thing")
    with pytest.raises(BundleError):
        publish(write_work(out), out, MANIFEST)
    assert len(list(out.iterdir())) == 1


def test_file_in_the_way_is_refused_and_empty_directory_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="not a directory"):
        check_output(tmp_path / "file", "thing")
    (tmp_path / "empty").mkdir()
    publish(write_work(tmp_path / "empty"), tmp_path / "empty", MANIFEST)
    load(tmp_path / "empty")


def test_every_changed_byte_of_the_manifest_is_noticed(out: Path) -> None:
    whole = (out / "manifest.json").read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        (out / "manifest.json").write_bytes(bytes(changed))
        with pytest.raises(BundleError):
            load(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "a.txt").write_text("onf"), r"a\.txt has changed"),
        (lambda out: (out / "a.txt").write_text("longer"), r"a\.txt has changed"),
        (lambda out: (out / "sub/b.txt").unlink(), r"sub/b\.txt is missing"),
        (lambda out: (out / "manifest.json").unlink(), "holds no manifest.json"),
        (lambda out: (out / "manifest.json").write_text("{"), "cannot be read"),
        (lambda out: (out / "manifest.json").write_text("[]"), "not a manifest"),
        (lambda out: (out / "manifest.json").write_text("{}"), "not a manifest"),
    ],
)
def test_damage_is_refused_in_one_line(out: Path, change: Any, message: str) -> None:
    change(out)
    with pytest.raises(BundleError, match=message) as refused:
        load(out)
    assert "\n" not in str(refused.value)


def test_newer_schema_and_other_kinds_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "new"
    publish(write_work(out), out, {**MANIFEST, "schema": 2})
    with pytest.raises(BundleError, match=r"newer vtc.*schema 2.*upgrade"):
        load(out)
    with pytest.raises(BundleError, match="is a 'thing', not a bundle"):
        read_manifest(out, "bundle", 1)
    with pytest.raises(BundleError, match="no such bundle directory"):
        read_manifest(tmp_path / "nowhere", "bundle", 1)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\\b", "C:x", "a\0b"])
def test_names_that_lead_outside_are_refused(out: Path, name: str) -> None:
    with pytest.raises(BundleError, match="outside its directory"):
        inside(out, name)


def test_link_to_itself_is_refused(out: Path) -> None:
    (out / "a.txt").unlink()
    (out / "a.txt").symlink_to("a.txt")
    with pytest.raises(BundleError, match=r"a\.txt is (a symbolic link to itself|missing)"):
        load(out)


def test_links_that_lead_outside_are_refused(out: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one")
    (out / "a.txt").unlink()
    (out / "a.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="outside its directory"):
        load(out)
    work = write_work(tmp_path / "other")
    (work / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="symbolic link"):
        publish(work, tmp_path / "other", MANIFEST)


def test_full_disk_is_one_line_and_keeps_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "thing"
    work = write_work(out)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(artifact, "flush", full)
        with pytest.raises(VtcError, match=r"No space left on device.*\.thing\.partial.*again") as refused:
            publish(work, out, MANIFEST)
    assert "\n" not in str(refused.value)
    assert not out.exists()
    publish(work, out, MANIFEST)
    load(out)

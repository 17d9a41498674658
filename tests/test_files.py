"""Small files of others: what is refused before it is read."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from vtc.files import MAX_DEPTH, parse_json, read_bytes, read_json, read_text


def _linked_pipe(path: Path) -> None:
    os.mkfifo(f"{path}.pipe")
    path.symlink_to(f"{path}.pipe")


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(2**40)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(path.parent):
        listening.bind(path.name)  # a path of a socket has a hundred letters at most


NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "named pipe"),
    "link to a pipe": (_linked_pipe, "named pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "device"),
    "directory": (Path.mkdir, "directory"),
    "socket": (_socket, "socket"),
    "huge": (_sparse, "bytes, and may hold"),
}


@pytest.mark.parametrize("kind", NOT_FILES)
def test_what_is_no_small_regular_file_is_refused_without_being_read(kind: str, tmp_path: Path) -> None:
    make, words = NOT_FILES[kind]
    make(tmp_path / "file")
    for read in (read_bytes, read_text, read_json):
        with pytest.raises(ValueError, match=words):
            read(tmp_path / "file")


def test_a_file_may_be_as_large_as_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10)
    assert read_bytes(tmp_path / "file", 10) == b"x" * 10
    with pytest.raises(ValueError, match="holds 10 bytes, and may hold 9"):
        read_bytes(tmp_path / "file", 9)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("[1]")
    (tmp_path / "file").symlink_to("blob")
    assert read_json(tmp_path / "file") == [1]


def test_text_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"not UTF-8 text \(byte 2\)"):
        read_text(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("\ufeff{}", "byte-order mark"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested"),
        ('{"a":' * 100_000, "nested"),
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ("1" * 10_000, "integer of 10000 digits"),
        ("-" + "1" * 41, "digits"),
        ("NaN", "not finite"),
        ("[-Infinity]", "not finite"),
        ("1e999", "not finite"),
        (r'"\ud800"', "half a character"),
        (r'{"\udc00": 1}', "half a character"),
    ],
)
def test_json_that_readers_take_differently_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, 2.5, true, null]", [1, 2.5, True, None]),
        ('{"model_max_length": 1000000000000000019884624838656}', {"model_max_length": int(1e30)}),
        (r'"\ud83d\ude00"', "\U0001f600"),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, None),
    ],
)
def test_other_json_is_taken(text: str, value: object) -> None:
    assert value is None or parse_json(text) == value
    parse_json(text)


def test_a_key_twice_is_refused_where_asked_for() -> None:
    text = '{"a": {"b": 1, "b": 2}}'
    assert parse_json(text) == {"a": {"b": 2}}
    with pytest.raises(ValueError, match="gives 'b' twice"):
        parse_json(text, once=True)

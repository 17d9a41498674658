"""Reading small files that someone else wrote: bounded in size, depth and digits, and regular files alone.

Faults are `ValueError` (or `OSError`, where the system refuses), with words for the user and without the file's name,
so that each caller names the file, its own kind of error and what to do.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import stat
from typing import Any, BinaryIO

TEXT_BYTES = 16 * 2**20
"""Largest text that is read whole, where a caller sets no other limit."""
TOKENIZER_BYTES = 128 * 2**20
"""Largest vocabulary; published ones have up to 34 MB."""
MAX_DEPTH = 64
MAX_DIGITS = 40
"""Of an integer; `tokenizer_config.json` files say 10**30 for "no limit"."""
_KINDS = {
    stat.S_ISDIR: "a directory",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; what is not a regular file is refused, and not waited for.

    A link to a regular file is one.

    Raises
    ------
    ValueError
        If it is a directory, a named pipe, a device or a socket.
    OSError
        If it does not exist or may not be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # non-blocking: a pipe without a writer
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise ValueError("is a socket, not a regular file") from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((words for test, words in _KINDS.items() if test(mode)), "something else")
            raise ValueError(f"is {kind}, not a regular file")
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def link_or_copy(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Give a file another name; where the file system has no links, copy it."""
    try:
        os.link(path, out)
    except OSError:
        shutil.copyfile(path, out)


def check_file(path: str | os.PathLike[str], limit: int = TEXT_BYTES) -> None:
    """Make sure that a file may be read whole by a library that does not look; faults as :func:`read_bytes`."""
    with open_regular(path) as stream:
        if (size := os.fstat(stream.fileno()).st_size) > limit:
            raise ValueError(f"holds {size} bytes, and may hold {limit}")


def read_bytes(path: str | os.PathLike[str], limit: int = TEXT_BYTES) -> bytes:
    """Read a regular file whole.

    Raises
    ------
    ValueError
        If it is not a regular file, or holds more than `limit` bytes; nothing is read then.
    OSError
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = b"" if size > limit else stream.read(limit + 1)
        if max(size, len(data)) > limit:
            raise ValueError(f"holds {max(size, len(data))} bytes, and may hold {limit}")
    return data


def read_text(path: str | os.PathLike[str], limit: int = TEXT_BYTES) -> str:
    """Read a regular file of UTF-8 whole; faults as :func:`read_bytes`."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from None


def read_json(path: str | os.PathLike[str], limit: int = TEXT_BYTES) -> Any:
    """Read a regular file of JSON whole; faults as :func:`read_bytes` and :func:`parse_json`."""
    return parse_json(read_text(path, limit))


def parse_json(text: str, *, once: bool = False) -> Any:
    """What JSON says, where it is what every reader takes the same way.

    Parameters
    ----------
    text : str
    once : bool
        Whether an object that has a key twice is refused; else the last one counts, as in transformers.

    Raises
    ------
    ValueError
        If it is not JSON, is nested more than `MAX_DEPTH` deep, or holds an integer of more than `MAX_DIGITS` digits,
        a number that is not finite or half a character.
    """
    if text.startswith("\ufeff"):
        raise ValueError("begins with a byte-order mark; save it as UTF-8 without one")
    try:
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=_each_once if once else None,
        )
    except RecursionError:
        raise ValueError(f"is nested more than {MAX_DEPTH} deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from None
    _check_depth(value)
    if _HALF_CHARACTER.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("holds half a character (a lone surrogate)") from None
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"gives '{name[:100]}' twice")
        found[name] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"holds an integer of {len(digits)} digits")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"holds a number that is not finite ({number[:20]})")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [one for one in level if isinstance(one, dict | list)]
        if not containers:
            return
        level = [part for one in containers for part in (one.values() if isinstance(one, dict) else one)]
    raise ValueError(f"is nested more than {MAX_DEPTH} deep")

"""Files of JSON, one object a line (JSON Lines), read with bounds."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtc.errors import InputError, OutOfResources

MAX_LINE = 2**20
"""Bytes of a line."""

MAX_FILE = 2**30
"""Bytes of a file."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of a file that are not blank, each with its number, from 1.

    A line ends with a line feed and nothing else, as JSON's strings may hold every other separator. A byte-order mark
    at the beginning is left out.

    Raises
    ------
    InputError
        If it cannot be read, is no regular file, or is too large.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{file}: is a directory, a pipe or a device; give a file")
        if status.st_size > MAX_FILE:
            raise InputError(f"{file}: is larger than the {MAX_FILE // 2**30} GiB that are read; split it")
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise InputError(
                        f"{file}:{number}: is longer than the {MAX_LINE // 2**20} MiB that a line may have"
                    )
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise OutOfResources(f"{file}: cannot be read, memory does not suffice") from None


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object on a line.

    Raises
    ------
    ValueError
        If it is none, with a message of a few words.
    """
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg}, character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except _Repeated as error:
        raise ValueError(f"has the field '{str(error)[:60]}' twice") from None
    except ValueError as error:
        named = isinstance(error, _Constant)
        raise ValueError(
            f"holds {error}, which is not JSON" if named else "holds a number of too many digits"
        ) from None
    if not isinstance(record, dict):
        raise ValueError("must be a JSON object")
    return record


class _Repeated(Exception):
    """A key that an object has twice."""


class _Constant(ValueError):
    """A word that Python's JSON reader takes for a number."""


def _refuse_constant(word: str) -> Any:
    raise _Constant(word)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Repeated(next(key for key in keys if keys.count(key) > 1))
    return found

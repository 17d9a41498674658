"""Files of JSON, one object a line (JSON Lines), read with bounds."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtc.errors import InputError, OutOfResources
from vtc.files import open_regular, parse_json

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
        with open_regular(file) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_FILE:
                raise InputError(f"{file}: is larger than the {MAX_FILE // 2**30} GiB that are read; split it")
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
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None
    except OSError as error:
        out = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
        raise (OutOfResources if out else InputError)(f"{file}: cannot be read ({error.strerror or error})") from None


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object on a line.

    Raises
    ------
    ValueError
        If it is none, with a message of a few words.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from None
    record = parse_json(text, once=True)
    if not isinstance(record, dict):
        raise ValueError("must be a JSON object")
    return record

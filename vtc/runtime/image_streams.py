"""Files of images, of which a decoder may not be kept busy for ever by many small parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vtc.errors import InputError

MAX_READS = 2**20
"""Parts of a file that a decoder reads: the largest images have a tenth, as a part is some kilobytes."""

MAX_TEXT = 32 * 2**20
"""Bytes of a file that writes its pixels as text; it takes seconds."""

MAX_COMMENTS = 1000
"""In such a file; Pillow copies what is left of it for each."""

MAX_SCANS = 200
"""Of a JPEG, each of which goes over all pixels though it may have a hundred bytes; encoders write ten."""

TOO_MANY = "is made of too many small parts; save it anew"
_AT_ONCE = 2**20
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""What begins a segment of a JPEG; within pixels, 0xff is followed by 0 or is a restart."""
_SCAN, _END = 0xDA, 0xD9


class PatientStream:
    """A file that is read in a bounded number of parts.

    Parameters
    ----------
    file : binary file object
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._reads = 0

    def read(self, size: int = -1) -> bytes:
        """Read a part.

        Raises
        ------
        InputError
            If there have been more than `MAX_READS`.
        """
        self._reads += 1
        if self._reads > MAX_READS:
            raise InputError(TOO_MANY)
        return bytes(self._file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def check_effort(file: Any) -> None:
    """Make sure that a file is decoded in a time that goes with its size.

    Raises
    ------
    InputError
        If it writes its pixels as text (PBM, PGM, PPM) at length, or is a JPEG of many scans.
    """
    first = file.read(2)
    if first in (b"P1", b"P2", b"P3"):
        size, comments = _measured(file, b"#")
        if size > MAX_TEXT or comments > MAX_COMMENTS:
            raise InputError("writes its pixels as text, and at too great length; save it as PNG")
    elif first == b"\xff\xd8":
        file.seek(0)
        _check_scans(file.read())
    file.seek(0)


def _check_scans(data: bytes) -> None:
    scans = 0
    for number, marker in enumerate(_markers(data)):
        scans += marker == _SCAN
        if scans > MAX_SCANS:
            raise InputError("has too many scans for a JPEG; save it anew")
        if number > MAX_READS:
            raise InputError(TOO_MANY)


def _markers(data: bytes) -> Iterator[int]:
    """Of a JPEG's segments, up to its end; phones put a clip or another picture after that."""
    place = 2
    while (found := _MARKER.search(data, place)) and found[1][0] != _END:
        yield found[1][0]
        place = found.end() + max(int.from_bytes(data[found.end() : found.end() + 2], "big"), 2)


def _measured(file: Any, mark: bytes) -> tuple[int, int]:
    """Bytes of what follows in a file, and how often a mark is among them."""
    size = marks = 0
    while part := file.read(_AT_ONCE):
        size += len(part)
        marks += part.count(mark)
    return size, marks

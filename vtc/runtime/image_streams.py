"""Files of images, of which a decoder may not be kept busy for ever by many small parts."""

from __future__ import annotations

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

_SCAN = b"\xff\xda"
_AT_ONCE = 2**20


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
            raise InputError("is made of too many small parts; save it anew")
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
    elif first == b"\xff\xd8" and _measured(file, _SCAN)[1] > MAX_SCANS:
        raise InputError("has too many scans for a JPEG; save it anew")
    file.seek(0)


def _measured(file: Any, mark: bytes) -> tuple[int, int]:
    """Bytes of what follows in a file, and how often a mark is among them."""
    size = marks = 0
    while part := file.read(_AT_ONCE):
        size += len(part)
        marks += part.count(mark)
    return size, marks

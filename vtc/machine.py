"""Faults of the machine: no memory, no space, no file handles, no threads, no permission.

Whatever reads or writes a file may meet them, and libraries hide them behind errors of their own; a file is not
damaged because there was no memory to read it.
"""

from __future__ import annotations

import errno
import os
import re

from vtc.errors import OutOfResources

MEMORY = "not enough memory; close other programs, or use a smaller model or batch"
THREADS = "the system starts no further thread; close other programs, or raise the limit (ulimit -u)"

REASONS = {
    errno.ENOMEM: MEMORY,
    errno.ENOSPC: "no space left on the disk; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free space and run the same command again",
    errno.EFBIG: "the file would be larger than is allowed here (ulimit -f)",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n) and run the same command again",
    errno.ENFILE: "the system has too many open files; close other programs and run the same command again",
    errno.EACCES: "permission denied; change its permissions or give another path",
    errno.EPERM: "not permitted; change its permissions or give another path",
    errno.EROFS: "the file system is read-only; give another path",
    errno.EIO: "the disk fails (input/output error); give a path on another disk",
}
"""What the machine lacks, by the number of its error, and what to do."""

PLACES = {
    errno.ENOENT: "no such file or directory",
    errno.EISDIR: "is a directory, not a file",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.ENAMETOOLONG: "the name is too long for the file system",
}
"""What is wrong with a path, by the number of the error."""

_NUMBER = re.compile(r"(?:os error|Errno|system error number) (\d+)")
_MEMORY = re.compile(
    "not enough memory|out of memory|bad_alloc|bad allocation|"
    r"(?:fail\w*|unable|cannot|can't|could not) (?:to )?allocate",
    re.IGNORECASE,
)
_THREADS = re.compile(
    r"can't start new thread|pthread_create failed|ThreadPoolBuildError|Resource temporarily unavailable"
)
_DEPTH = 10
"""Errors of a chain that are looked at."""


def machine_fault(error: BaseException, where: object = "") -> OutOfResources | None:
    """Recognise a fault of the machine in an error, or in one that led to it.

    Parameters
    ----------
    error : BaseException
        Of Python, or of a library that tells the number or the words of the system's error.
    where : object
        The file or directory, where the error does not name it.

    Returns
    -------
    OutOfResources or None
        To be raised in place of what the error would mean otherwise: ``raise machine_fault(error, path) or ...``.
    """
    link: BaseException | None = error
    for _ in range(_DEPTH):
        if link is None:
            break
        if isinstance(link, OutOfResources):
            return link
        if reason := _lacks(link):
            place = (getattr(link, "filename", None) if isinstance(link, OSError) else None) or where
            return OutOfResources(f"{_named(place)}: {reason}" if place else reason)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


def path_fault(error: OSError) -> str:
    """Say what is wrong with a path, where the system's error is about one; empty otherwise."""
    if error.errno is None or error.errno == errno.EBADF:  # of a bad handle, which no user gives
        return ""
    reason = PLACES.get(error.errno) or os.strerror(error.errno).lower()
    if error.errno == errno.ENOENT and not error.filename:
        reason += "; does the current directory still exist?"
    return f"{_named(error.filename)}: {reason}" if error.filename else reason


def _named(place: object) -> str:
    return os.fsdecode(place) if isinstance(place, bytes) else str(place)


def _lacks(error: BaseException) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return REASONS.get(error.errno, "")
    if isinstance(error, KeyError | AttributeError | AssertionError):
        return ""
    text = str(error)[:10_000]
    if number := _NUMBER.search(text):
        return REASONS.get(int(number[1]), "")
    return MEMORY if _MEMORY.search(text) else THREADS if _THREADS.search(text) else ""

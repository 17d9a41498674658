"""Puts a directory in the place of another, so that the old or the new one is there, whole, at every instant.

Linux exchanges two directories in one step. Where the system or the file system cannot, the old one is moved aside
first; a command that is killed between the two steps leaves it under another name (:func:`old_place`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def old_place(out: Path) -> Path:
    """Where a directory waits while another takes its place in two steps."""
    return out.with_name(f".{out.name}.old")


def exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; False where that cannot be done.

    Raises
    ------
    OSError
        If the system refuses for another reason.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def replace_directory(new: Path, out: Path) -> Path | None:
    """Put `new` at `out`, and return where the directory is that was there, if one was.

    Raises
    ------
    OSError
        If the system refuses; the old one is at its place then.
    """
    if not out.is_dir() or not any(out.iterdir()):
        os.rename(new, out)  # which replaces an empty directory, and nothing else
        flush(out.parent)
        return None
    if exchange(new, out):
        flush(out.parent)
        return new
    old = old_place(out)
    os.rename(out, old)
    try:
        os.rename(new, out)
    except BaseException:
        os.rename(old, out)
        raise
    flush(out.parent)
    return old


def flush(path: Path) -> None:
    """Write a file or a directory to the disk, so that a power cut does not undo it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems do not write directories so.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP) or not path.is_dir():
            raise
    finally:
        with suppress(OSError):
            os.close(descriptor)

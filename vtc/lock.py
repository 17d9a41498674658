"""Locks: the right to write an output, which one command has at a time.

The lock of an output is a file beside it that names its process. The system gives it up when the process ends.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vtc.errors import BundleError
from vtc.files import parse_json

LOCK = ".vtc-lock"
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Lock:
    """The right to write an output, held until it is released or its process ends.

    Attributes
    ----------
    path : Path
        A file beside the output that names the process.
    descriptor : int or None
        None where the file system knows no locks.
    """

    path: Path
    descriptor: int | None

    def release(self) -> None:
        """Let others write the output."""
        if self.descriptor is not None:
            with suppress(OSError):
                self.path.unlink()
            os.close(self.descriptor)


def take_lock(out: Path, command: str) -> Lock:
    """Lock an output, or say who has.

    Raises
    ------
    BundleError
        If another process has, or something else is where the lock's file should be.
    OSError
        If the file cannot be made.
    """
    path = out.with_name(f".{out.name}{LOCK}")
    while True:
        descriptor = _open_lock(path)
        try:
            content = os.pread(descriptor, _MOST_BYTES, 0)
            if content and _holder(content) is None:
                raise _in_the_way(path)
            if not _locked(descriptor, path):
                os.close(descriptor)
                return Lock(path, None)
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                own = {"command": command, "pid": os.getpid(), "host": socket.gethostname()}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(own).encode(), 0)
                return Lock(path, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            holder = _named(_holder(content))
            raise BundleError(f"{out}: {holder} is writing it; wait for it, or give another output") from None
        except FileNotFoundError:
            pass  # its holder has just finished
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _in_the_way(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _in_the_way(path)
    return descriptor


def is_left_lock(path: Path) -> bool:
    """Whether a file is the lock of a command that has ended.

    Raises
    ------
    BundleError
        If the command goes on.
    """
    if not path.name.endswith(LOCK) or path.is_symlink() or not path.is_file():
        return False
    out = path.with_name(path.name[1:].removesuffix(LOCK))
    try:
        take_lock(out, "vtc").release()
    except OSError:
        return False
    return True


def _locked(descriptor: int, path: Path) -> bool:
    """Lock a file; False where its file system has no locks.

    Raises
    ------
    BlockingIOError
        If another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        path.unlink(missing_ok=True)
        return False
    return True


def _holder(content: bytes) -> dict[str, object] | None:
    try:
        holder = parse_json(content.decode())
    except ValueError:
        return None
    return holder if isinstance(holder, dict) and holder.keys() >= {"command", "pid", "host"} else None


def _in_the_way(path: Path) -> BundleError:
    return BundleError(f"{path}: is in the way of a lock; move it away and run the same command again")


def _named(holder: dict[str, object] | None) -> str:
    if holder is None:
        return "another process"
    where = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
    return f"{holder['command']} (process {holder['pid']}{where})"
